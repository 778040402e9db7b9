"""How often something that dies may be started again, and how soon."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["RestartPolicy"]


_PARDONS = 3
"""Pardons in the window, for each restart in it. A cause takes two or three to be found."""


class RestartPolicy:
    """Waits longer after each death, and gives up where they come too fast.

    A model that kills its engine at once would otherwise be loaded for ever.
    Used by one thread; the caller brings the time.

    Args:
        limit: Restarts within the window at most; 0 never restarts.
        window_seconds: Deaths that are longer ago are forgotten.
        first_delay_seconds: The wait before the first restart; it doubles with each.
        longest_delay_seconds: What it doubles up to.
    """

    def __init__(
        self,
        *,
        limit: int = 3,
        window_seconds: float = 60.0,
        first_delay_seconds: float = 0.25,
        longest_delay_seconds: float = 10.0,
    ) -> None:
        self.limit = limit
        self.window_seconds = window_seconds
        self._first_delay = first_delay_seconds
        self._longest_delay = longest_delay_seconds
        self._deaths: deque[float] = deque()
        self._pardons: deque[float] = deque()

    def after_death(self, now: float, pardoned: Collection[float] = ()) -> float | None:
        """Count a death; return the seconds to wait before the restart, None to give up.

        Args:
            now: Seconds of a monotonic clock.
            pardoned: Times of deaths, this one too perhaps, that are known to have a cause of
                their own. They are forgotten, but not without end: something that dies of
                everything would otherwise be started again for each cause.
        """
        self._forget_old(now)
        self._deaths.append(now)
        if pardoned and len(self._pardons) < _PARDONS * self.limit:
            self._pardons.append(now)
            self._deaths = deque(at for at in self._deaths if at not in pardoned)
        deaths = len(self._deaths)
        if deaths > self.limit:
            return None
        return min(self._first_delay * 2.0 ** max(deaths - 1, 0), self._longest_delay)

    def _forget_old(self, now: float) -> None:
        for times in (self._deaths, self._pardons):
            while times and now - times[0] > self.window_seconds:
                times.popleft()
