"""How long something may take to load, first and again."""

from __future__ import annotations

__all__ = ["LoadLimit"]


class LoadLimit:
    """What the operator allows until a load has ended well; then what loads have shown to take.

    A limit that is too short must not be for ever: each load that overran it
    doubles it for the next one, which also finds more of its files in memory.
    Used by one thread.

    Args:
        most_seconds: What no load may take longer than.
        least_seconds: What a later load may take in any case.
        margin: How many times as long as the longest load a later one may take.
    """

    def __init__(self, most_seconds: float, *, least_seconds: float, margin: float) -> None:
        self._most = most_seconds
        self._least = least_seconds
        self._margin = margin
        self._longest = 0.0
        self.seconds = most_seconds
        """What the next load may take."""

    def loaded(self, seconds: float) -> None:
        """Learn how long a load took that ended well."""
        self._longest = max(self._longest, seconds)
        self.seconds = min(max(self._margin * self._longest, self._least), self._most)

    def overran(self) -> None:
        """Learn that a load was given up at the limit."""
        self.seconds = min(2 * self.seconds, self._most)
