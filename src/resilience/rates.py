"""Rates: how many requests and tokens a client may use per minute.

A bucket per client fills steadily and holds a minute's worth: who was quiet
may send a burst, and nobody exceeds the rate for long. Tokens are charged by
an estimate when a request comes, and settled when it ends; a bucket may go
below zero by that, and then has to fill first.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .errors import RateLimitError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Allowance", "Rates"]

_MINUTE = 60.0
_Resource = Literal["requests", "tokens"]


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a client has left of one resource."""

    resource: _Resource
    limit: int
    """Per minute."""
    remaining: int
    reset_seconds: float
    """Until the bucket is full."""


@dataclass(slots=True)
class _Bucket:
    """Fills by the monotonic clock; whoever uses it holds the lock."""

    level: float
    at: float

    def fill(self, limit: int, now: float) -> None:
        """Add what has come since it was looked at."""
        self.level = min(limit, self.level + (now - self.at) * limit / _MINUTE)
        self.at = now


class Rates:
    """Buckets by tenant. Safe from any thread; never blocks.

    Args:
        requests: Per minute and tenant; 0 is without limit.
        tokens: Of prompts and answers, per minute and tenant; 0 is without limit.
        clock: A monotonic clock.
    """

    def __init__(
        self, *, requests: int, tokens: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits: dict[_Resource, int] = {}
        if requests:
            self._limits["requests"] = requests
        if tokens:
            self._limits["tokens"] = tokens
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[tuple[int, _Resource], _Bucket] = {}
        """Tenants are as many as there are keys, so there are few."""

    def take_request(self, tenant: int) -> None:
        """Count a request, or raise :class:`RateLimitError`."""
        self._take(tenant, "requests", 1)

    def take_tokens(self, tenant: int, estimate: int) -> None:
        """Charge the tokens that a request is likely to use, or raise :class:`RateLimitError`.

        One that needs more than a minute's worth is taken by a full bucket.
        """
        self._take(tenant, "tokens", estimate)

    def settle_tokens(self, tenant: int, *, estimate: int, used: int) -> None:
        """Correct what was charged to what was used."""
        limit = self._limits.get("tokens")
        if limit is not None:
            with self._lock:
                bucket = self._bucket(tenant, "tokens", limit)
                bucket.level = min(limit, bucket.level + estimate - used)

    def allowances(self, tenant: int) -> list[Allowance]:
        """Return what is left of each resource that is limited."""
        found = []
        with self._lock:
            for resource, limit in self._limits.items():
                bucket = self._bucket(tenant, resource, limit)
                missing = (limit - bucket.level) * _MINUTE / limit
                found.append(Allowance(resource, limit, max(0, int(bucket.level)), missing))
        return found

    def _take(self, tenant: int, resource: _Resource, amount: int) -> None:
        limit = self._limits.get(resource)
        if limit is None:
            return
        with self._lock:
            bucket = self._bucket(tenant, resource, limit)
            missing = min(amount, limit) - bucket.level
            if missing <= 0:
                bucket.level -= amount
                return
        message = f"The limit of {limit} {resource} per minute is used up. Retry later."
        raise RateLimitError(message, retry_after=missing * _MINUTE / limit)

    def _bucket(self, tenant: int, resource: _Resource, limit: int) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.setdefault((tenant, resource), _Bucket(limit, now))
        bucket.fill(limit, now)
        return bucket
