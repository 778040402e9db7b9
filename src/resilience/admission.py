"""Admission: how many sequences may be in the server at once.

The bound is on sequences, because a request with ``n`` choices takes ``n``
places in the batch. A place is taken before anything is sent to the engine
and given back when the engine has really freed it. One is reserved for each
request that has been read, until it takes what it wants: of many that come at
once, those without a place are known before anybody has looked at them.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from .errors import InvalidRequestError, QueueFullError
from .reservation import Reservation
from .service_rate import RetryAdvice, ServiceRate

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Admission"]

_SHARE = 4
"""A tenant may hold so many times the places that it leaves free: alone four fifths of all, two
tenants four ninths each. So there is always room for one that holds little, however many flood."""


class Admission:
    """Counts places in batch and queue. Safe from any thread; never blocks.

    Tenants are told apart by number. Those of tenant 0 are nobody in
    particular, and may fill the server.
    """

    def __init__(
        self, *, max_batch: int, max_queue: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Bound the sequences that run (``max_batch``) and wait (``max_queue``) together."""
        self._capacity = max_batch + max_queue
        self._max_batch = max_batch
        self._clock = clock
        self._lock = threading.Lock()
        self._taken = 0
        self._held: dict[int, int] = {}
        """Places by tenant; none that is 0."""
        self._reserved: dict[int, int] = {}
        """Those kept for requests that have taken none yet; likewise."""
        self._rate = ServiceRate()
        self._advice = RetryAdvice()

    @property
    def taken(self) -> int:
        """Sequences admitted and not yet released."""
        return self._taken

    def reserve(self, tenant: int = 0) -> Reservation | None:
        """Keep a place for a request that has been read; None where there is none for its tenant.

        Others that want many places may still take it: who has it is then refused later.
        """
        with self._lock:
            free = self._capacity - self._taken - sum(self._reserved.values()) - 1
            held = self._held.get(tenant, 0) + self._reserved.get(tenant, 0)
            if not _is_fair(free, held, 1, tenant):
                return None
            _add(self._reserved, tenant, 1)
        return Reservation(tenant, self._give_back)

    def refusal(self, tenant: int = 0) -> QueueFullError:
        """Return what one is told for whom there is no place; the next one is told a later time."""
        now = self._clock()
        with self._lock:
            return self._full(now, places=1, tenant=tenant)

    def take(self, places: int, tenant: int = 0, reservation: Reservation | None = None) -> None:
        """Take ``places`` at once, or raise; what was reserved for the request is one of them.

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
        now = self._clock()
        with self._lock:
            if reservation is not None and reservation.claim():
                _add(self._reserved, reservation.tenant, -1)
            free = self._capacity - self._taken - places
            if _is_fair(free, self._held.get(tenant, 0), places, tenant):
                self._taken += places
                _add(self._held, tenant, places)
                self._rate.note(now, freed=0, saturated=self._taken >= self._max_batch)
                return
            raise self._full(now, places=places, tenant=tenant)

    def retry_after(self) -> float:
        """Return the seconds after which one who is turned away now should come back."""
        now = self._clock()
        with self._lock:
            seconds = self._rate.seconds_per_place(now)
            return self._advice.after_refusal(now, places=1, seconds_per_place=seconds)

    def release(self, places: int, tenant: int = 0) -> None:
        """Give places back."""
        with self._lock:
            self._rate.note(
                self._clock(), freed=places, saturated=self._taken - places >= self._max_batch
            )
            self._taken -= places
            _add(self._held, tenant, -places)

    def _give_back(self, tenant: int) -> None:
        """End a reservation that nothing came of."""
        with self._lock:
            _add(self._reserved, tenant, -1)

    def _full(self, now: float, *, places: int, tenant: int) -> QueueFullError:
        """Return why so many places are not to be had now. Called with the lock held."""
        retry_after = self._advice.after_refusal(
            now, places=places, seconds_per_place=self._rate.seconds_per_place(now)
        )
        held = self._taken + sum(self._reserved.values())
        if tenant == 0 or held + places > self._capacity:
            whose = f"The server is at its limit of {self._capacity} places"
        else:
            whose = "Your API key has its share of the server; the rest is for others"
        return QueueFullError(f"{whose}. Retry later.", retry_after=retry_after)


def _is_fair(free: int, held: int, places: int, tenant: int) -> bool:
    """Return whether a tenant that holds some may have further ``places``, which leave ``free``."""
    if free < 0:
        return False
    return tenant == 0 or held == 0 or held + places <= _SHARE * free


def _add(counts: dict[int, int], tenant: int, places: int) -> None:
    """Change a tenant's count, and forget it where it becomes 0."""
    count = counts.get(tenant, 0) + places
    assert count >= 0, "more was given back than was held"
    if count:
        counts[tenant] = count
    else:
        counts.pop(tenant, None)
