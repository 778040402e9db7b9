"""How much smaller something starts again after it died of what may be its size."""

from __future__ import annotations

__all__ = ["Caution"]

_SIZE_MATTERS = frozenset({"SIGKILL", "SIGSEGV", "SIGABRT", "SIGBUS", "hang"})
"""Endings that too much work at once can have: out of memory is SIGKILL from the kernel, SIGSEGV or
SIGABRT from MLX, and a chunk that takes minutes looks like a hang. An exit code is a decision."""
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
        self._halvings = 0
        self._started_at = 0.0

    def started(self, now: float) -> int:
        """Return the halvings of an engine that starts to serve now."""
        self._started_at = now
        return self._halvings

    def died(self, ending: str, now: float, *, explained: bool) -> None:
        """Learn of a death.

        Args:
            ending: How the engine ended.
            now: Seconds of a monotonic clock.
            explained: Whether the cause is known to be a single request.
        """
        grown = int(max(now - self._started_at, 0.0) / self._spell)
        self._halvings = max(self._halvings - grown, 0)
        if ending in _SIZE_MATTERS and not explained:
            self._halvings = min(self._halvings + 1, _MOST_HALVINGS)
