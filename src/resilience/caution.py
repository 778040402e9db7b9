"""How much smaller something starts again after it died of what may be its size."""

from __future__ import annotations

__all__ = ["OUT_OF_MEMORY", "Caution"]

OUT_OF_MEMORY = "out_of_memory"
"""How something ended that saw itself that it gets no memory."""
_SIZE_MATTERS = frozenset({OUT_OF_MEMORY, "SIGKILL", "SIGSEGV", "SIGABRT", "SIGBUS", "hang"})
"""Endings that too much work at once can have: out of memory is SIGKILL from the kernel, SIGSEGV or
SIGABRT from MLX, and a chunk that takes minutes looks like a hang. Any exit code is a decision."""
_MOST_HALVINGS = 3
"""An eighth of its limits; what dies with those dies of something else."""


class Caution:
    """Counts by how many halvings an engine starts smaller. Used by one thread.

    Each death adds one. The engine grows back by itself, a doubling for each
    spell without trouble; so does the count.

    Args:
        spell_seconds: How long an engine lives well until it doubles.
    """

    def __init__(self, *, spell_seconds: float = 30.0) -> None:
        self._spell = spell_seconds
        self._started_at = 0.0
        self.halvings = 0
        """How often the limits of the next engine are halved."""

    def started(self, now: float) -> None:
        """Learn that an engine serves from now on, with the limits that it was given."""
        self._started_at = now

    def died(self, ending: str, now: float, *, explained: bool) -> None:
        """Learn of a death.

        Args:
            ending: How the engine ended.
            now: Seconds of a monotonic clock.
            explained: Whether the cause is known to be a single request.
        """
        grown = int(max(now - self._started_at, 0.0) / self._spell)
        self.halvings = max(self.halvings - grown, 0)
        if ending in _SIZE_MATTERS and not explained:
            self.halvings = min(self.halvings + 1, _MOST_HALVINGS)
