"""Whether waiting for a request still makes sense: its client, its deadlines, the server's end."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..resilience.errors import DrainingError, InvalidRequestError, ShutdownError
from .run import ClientGoneError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..resilience.deadline import Deadlines

__all__ = ["LONGEST_TIMEOUT", "TIMEOUT_HEADER", "RequestPatience", "requested_seconds"]

TIMEOUT_HEADER = "X-Request-Timeout"
"""Seconds that the client is ready to wait for the whole answer."""
_SECONDS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?")
LONGEST_TIMEOUT = 86400.0


def requested_seconds(header: str | None, allowed: float) -> float:
    """Return how long a request may take in all; 0 is without end.

    Args:
        header: What the client sent; it can shorten the time and not lengthen it.
        allowed: The server's own limit; 0 is none.

    Raises:
        InvalidRequestError: The header is not a number of seconds.
    """
    if header is None:
        return allowed
    seconds = float(header) if _SECONDS.fullmatch(header) else 0.0
    if not 0 < seconds <= LONGEST_TIMEOUT:
        message = (
            f"The header '{TIMEOUT_HEADER}' should be a number of seconds above 0, "
            f"up to {LONGEST_TIMEOUT:g}."
        )
        raise InvalidRequestError(message)
    return min(seconds, allowed) if allowed else seconds


class RequestPatience:
    """Patience of one request: its connection is open, and client and server have time.

    Args:
        disconnected: waitress' look at the connection.
        out_of_time: Whether the server's time to finish is over.
        deadlines: The request's own.
    """

    def __init__(
        self,
        disconnected: Callable[[], bool],
        out_of_time: Callable[[], bool],
        deadlines: Deadlines,
    ) -> None:
        self._disconnected = disconnected
        self._out_of_time = out_of_time
        self._deadlines = deadlines

    def check(self, *, started: bool) -> None:
        """Raise when waiting makes no sense any more."""
        if self._disconnected():
            raise ClientGoneError
        if self._out_of_time():
            if started:
                message = "The server shut down before this request was done. Send it again."
                raise ShutdownError(message)
            message = "The server shut down before this request had its turn. Send it again."
            raise DrainingError(message)
        self._deadlines.check(started=started)
