"""Prompts that ended engine after engine, and are not tried again for a while.

Clients send a request again that ended with 503. One that kills the engine
each time would cost a few engines at each attempt, and everybody else waits
for those.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict

from .errors import EngineDiedError

__all__ = ["CONVICTION_SECONDS", "Convictions"]

CONVICTION_SECONDS = 60.0
"""How long: by then the deaths have left the window in which restarts are counted, too."""
_MOST = 256
"""Prompts that are kept; then the oldest one is forgotten."""


class Convictions:
    """Remembers digests, never prompts. Safe from any thread; the caller brings the time."""

    def __init__(self) -> None:
        """Begin with none."""
        self._lock = threading.Lock()
        self._found: OrderedDict[bytes, tuple[float, int]] = OrderedDict()
        """Until when each is refused, and how many deaths it was in."""

    def __bool__(self) -> bool:
        """Whether there may be any, which is worth a digest."""
        return bool(self._found)

    def convict(self, prompt: bytes, now: float, *, deaths: int) -> EngineDiedError:
        """Refuse a prompt from now on; return the error that its client is told.

        Args:
            prompt: All that makes it this one.
            now: Seconds of a monotonic clock.
            deaths: How many engines died of it.
        """
        digest = _digest(prompt)
        with self._lock:
            self._forget_old(now)
            self._found.pop(digest, None)
            self._found[digest] = (now + CONVICTION_SECONDS, deaths)
            while len(self._found) > _MOST:
                self._found.popitem(last=False)
        return _error(deaths, CONVICTION_SECONDS)

    def check(self, prompt: bytes, now: float) -> None:
        """Raise :class:`EngineDiedError` where a prompt is refused."""
        digest = _digest(prompt)
        with self._lock:
            self._forget_old(now)
            until, deaths = self._found.get(digest, (now, 0))
        if until > now:
            raise _error(deaths, until - now)

    def _forget_old(self, now: float) -> None:
        """Forget those whose time is over, the oldest first. The lock is held."""
        while self._found and next(iter(self._found.values()))[0] <= now:
            self._found.popitem(last=False)


def _error(deaths: int, seconds: float) -> EngineDiedError:
    message = (
        f"The engine died {deaths} times on this request. "
        f"It is not tried again for {math.ceil(seconds)} s: change it."
    )
    return EngineDiedError(message, retry_after=seconds)


def _digest(prompt: bytes) -> bytes:
    return hashlib.blake2b(prompt, digest_size=16).digest()
