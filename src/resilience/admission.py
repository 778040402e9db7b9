"""Admission: how many sequences may be in the server at once.

The bound is on sequences, because a request with ``n`` choices takes ``n``
places in the batch. A place is taken before anything is sent to the engine
and given back when the engine has really freed it.
"""

from __future__ import annotations

import threading

from .errors import InvalidRequestError, QueueFullError

__all__ = ["Admission"]


class Admission:
    """Counts places in batch and queue. Safe from any thread; never blocks."""

    def __init__(self, *, max_batch: int, max_queue: int) -> None:
        """Bound the sequences that run (``max_batch``) and wait (``max_queue``) together."""
        self._capacity = max_batch + max_queue
        self._lock = threading.Lock()
        self._taken = 0

    @property
    def taken(self) -> int:
        """Sequences admitted and not yet released."""
        return self._taken

    def take(self, places: int) -> None:
        """Take ``places`` at once, or raise.

        Raises:
            InvalidRequestError: More than there are: this request never fits.
            QueueFullError: Not now.
        """
        if places > self._capacity:
            message = (
                f"This request asks for {places} sequences, but the server holds at most "
                f"{self._capacity}. Ask for fewer choices."
            )
            raise InvalidRequestError(message, param="n")
        with self._lock:
            if self._taken + places <= self._capacity:
                self._taken += places
                return
            taken = self._taken
        message = f"The server is at its limit ({taken} of {self._capacity} places). Retry later."
        raise QueueFullError(message)

    def release(self, places: int) -> None:
        """Give places back."""
        with self._lock:
            self._taken -= places
