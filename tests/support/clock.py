"""Time that a test moves."""

from __future__ import annotations

__all__ = ["SimulatedClock"]


class SimulatedClock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now
