"""How long a request may wait for its turn, and how long it may take in all."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .errors import DeadlineExceededError, QueueTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Deadlines"]


class Deadlines:
    """The two deadlines of one request.

    Belongs to the thread that answers the request, which checks it now and
    then: what is checked ends at most one poll late.

    Args:
        total_seconds: For the whole answer; 0 is without end.
        queue_seconds: Until the engine begins with the prompt; 0 is without end.
        retry_after: Returns when one who waited in vain should come back.
        started_at: From when they are counted, by the clock; None for now.
        clock: A monotonic clock.
    """

    def __init__(
        self,
        *,
        total_seconds: float,
        queue_seconds: float,
        retry_after: Callable[[], float],
        started_at: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total_seconds
        self._queue = queue_seconds
        self._retry_after = retry_after
        self._clock = clock
        self._begin = clock() if started_at is None else started_at

    def check(self, *, started: bool) -> None:
        """Raise where the time is over.

        Args:
            started: Whether the engine has begun with the request.

        Raises:
            DeadlineExceededError: The request took too long in all.
            QueueTimeoutError: It waited too long; nothing was started.
        """
        passed = self._clock() - self._begin
        if 0 < self._total <= passed:
            message = (
                f"The request was not done within its {self._total:g} seconds. Ask for fewer "
                "tokens, or for more time."
            )
            raise DeadlineExceededError(message)
        if not started and 0 < self._queue <= passed:
            message = (
                f"The request waited {self._queue:g} seconds in vain for its turn. Retry later."
            )
            raise QueueTimeoutError(message, retry_after=self._retry_after())
