"""How fast places become free, measured while all of them are wanted."""

from __future__ import annotations

__all__ = ["RetryAdvice", "ServiceRate"]

_WEIGHT = 0.1
"""Of the newest interval in the mean: about the last twenty count."""
_FIRST_GUESS_SECONDS = 1.0
"""Per place, until something was measured."""


class ServiceRate:
    """The mean time between two places that become free. The caller locks and brings the time.

    Only intervals in which the batch was full count: a server with little to
    do frees few places, and could free more.
    """

    def __init__(self) -> None:
        self._mean: float | None = None
        self._since: float | None = None
        """When the interval that is being measured began; None while the batch is not full."""

    def note(self, now: float, *, freed: int, saturated: bool) -> None:
        """Take that ``freed`` places became free, or none, and whether the batch is full now."""
        if freed and self._since is not None:
            interval = (now - self._since) / freed
            mean = interval if self._mean is None else self._mean
            self._mean = mean + _WEIGHT * (interval - mean)
            self._since = now
        if not saturated:
            self._since = None
        elif self._since is None:
            self._since = now

    def seconds_per_place(self, now: float) -> float:
        """Return the mean, or how long nothing has become free where that is longer."""
        mean = _FIRST_GUESS_SECONDS if self._mean is None else self._mean
        return mean if self._since is None else max(mean, now - self._since)


class RetryAdvice:
    """When those who were refused should come back: one after the other, as places become free.

    Told the same time, all of them would come back at once and most be refused
    again. Each refusal therefore takes a turn in a line that moves on by itself.
    The caller locks and brings the time.

    Args:
        shortest: Seconds that everybody is told at least.
        longest: Seconds that nobody is told more than; OpenAI's clients wait 60 at most.
    """

    def __init__(self, *, shortest: float = 1.0, longest: float = 60.0) -> None:
        self._shortest = shortest
        self._longest = longest
        self._next_turn = 0.0

    def after_refusal(self, now: float, *, places: int, seconds_per_place: float) -> float:
        """Return the seconds after which ``places`` are likely to be free for this client."""
        turn = max(now, self._next_turn) + places * seconds_per_place
        self._next_turn = min(turn, now + self._longest)
        return min(max(turn - now, self._shortest), self._longest)
