"""When something that works on behalf of others counts as hung."""

from __future__ import annotations

import enum

__all__ = ["HangDetector", "Health"]

_LOOKS = 8
"""Looks in the time of the limit."""
_LATE = 2.0
"""A look that came later than so many intervals counts as so many: the machine slept, or this
process was stopped, and the other had no time to work either."""


class Health(enum.Enum):
    """What a look has found."""

    FINE = "fine"
    SILENT = "silent"
    """It has said nothing for half of the limit: ask it whether it is alive."""
    HUNG = "hung"


class HangDetector:
    """Adds up the time in which there was work and no progress. Used by one thread.

    Args:
        limit_seconds: Silence with work pending that counts as a hang. It has to be longer than
            the longest single piece of work; a slow one after the other is progress.
    """

    def __init__(self, limit_seconds: float) -> None:
        self.limit_seconds = limit_seconds
        self.interval_seconds = limit_seconds / _LOOKS
        """How often to look."""
        self._progress: object = None
        self._silent = 0.0
        self._looked_at: float | None = None

    def look(self, now: float, *, progress: object, pending: bool) -> Health:
        """Look once.

        Args:
            now: Seconds of a monotonic clock.
            progress: Anything that differs after each bit of progress.
            pending: Whether there is work that it could make progress with.
        """
        before = now if self._looked_at is None else self._looked_at
        self._looked_at = now
        if not pending or progress != self._progress:
            self._progress = progress
            self._silent = 0.0
            return Health.FINE
        self._silent += min(now - before, _LATE * self.interval_seconds)
        if self._silent >= self.limit_seconds:
            return Health.HUNG
        return Health.SILENT if self._silent >= self.limit_seconds / 2 else Health.FINE
