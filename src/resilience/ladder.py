"""The memory ladder: what is done when memory runs short, in order, each step measured.

Free what nobody uses, give up what can be computed again, ask for less, do
one request at a time, take no new work; and only when nothing of that helped
let the process start afresh. Free first, measure, then decide: a ladder that
decided by what it had not tried to free would refuse for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["MemoryLadder", "ReclaimAction", "Reclaimed", "Rung"]

ReclaimAction = Literal["buffer_cache", "prompt_cache", "shrink", "requeue", "refuse"]


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """One step of the ladder, as it was measured."""

    action: ReclaimAction
    before_bytes: int
    """In use before the step."""
    after_bytes: int
    """In use after it."""

    @property
    def freed_bytes(self) -> int:
        """What the step freed; 0 where use did not fall."""
        return max(self.before_bytes - self.after_bytes, 0)


@dataclass(frozen=True, slots=True)
class Rung:
    """One step that can be taken."""

    action: ReclaimAction
    take: Callable[[], None]
    """Frees what it can. Must not allocate in proportion to what runs."""


class MemoryLadder:
    """Climbs a rung per call, and comes down again when memory has been quiet.

    Climbed by one thread; the properties may be read from any.
    """

    def __init__(
        self,
        rungs: Sequence[Rung],
        *,
        measure: Callable[[], int],
        clock: Callable[[], float],
        listener: Callable[[Reclaimed], None] = lambda _: None,
        quiet_seconds: float = 5.0,
    ) -> None:
        """Start at the bottom.

        Args:
            rungs: In the order in which they are taken; at least one.
            measure: Returns the bytes in use now.
            clock: Seconds, monotonic.
            listener: Told of each step that was taken.
            quiet_seconds: Without trouble for so long, the next trouble starts at the
                bottom again, and new work is no longer refused.
        """
        self._rungs = tuple(rungs)
        self._measure = measure
        self._clock = clock
        self._listener = listener
        self._quiet_seconds = quiet_seconds
        self._taken = 0
        """Rungs since memory was last quiet."""
        self._trouble_at = 0.0

    @property
    def exhausted(self) -> bool:
        """Whether every rung was taken and memory has not been quiet since."""
        return self._climbed() >= len(self._rungs)

    @property
    def refusing(self) -> bool:
        """Whether new work is refused: the rung "refuse" was taken, and it is not quiet yet."""
        return any(rung.action == "refuse" for rung in self._rungs[: self._climbed()])

    @property
    def retry_seconds(self) -> float:
        """When new work is taken again if nothing else happens."""
        return max(self._trouble_at + self._quiet_seconds - self._clock(), 0.0)

    def reclaim(self) -> Reclaimed:
        """Take the next rung; past the last one begin again with what frees most easily."""
        taken = self._climbed()
        self._taken = taken + 1
        self._trouble_at = self._clock()
        rung = self._rungs[taken % len(self._rungs)]
        before = self._measure()
        rung.take()
        step = Reclaimed(rung.action, before, self._measure())
        self._listener(step)
        return step

    def come_down(self) -> None:
        """Note that there is enough memory: nothing is refused, and trouble starts at the bottom."""
        self._taken = 0

    def _climbed(self) -> int:
        quiet = self._clock() - self._trouble_at >= self._quiet_seconds
        return 0 if quiet else self._taken
