"""What the client is told of an error that is not ours: one table, and no text of the error.

Everything that a route can raise has an answer here: libraries' errors, the
kernel's, those of the interpreter. What is in no row is an error of the server.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from werkzeug.exceptions import HTTPException

from ..resilience.errors import (
    BodyTooLargeError,
    EngineUnavailableError,
    InternalError,
    InvalidRequestError,
    MediaTypeError,
    MethodNotAllowedError,
    OOMError,
    PharosError,
    RouteNotFoundError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["told_error"]

_BY_STATUS: dict[int, Callable[[], PharosError]] = {
    404: lambda: RouteNotFoundError(
        "There is no such route. See /openapi.json for those there are."
    ),
    405: lambda: MethodNotAllowedError(
        "The route does not take this method. The header 'Allow' lists what it takes."
    ),
    413: lambda: BodyTooLargeError("The request is larger than the server takes."),
    415: lambda: MediaTypeError("The body has to be JSON: send Content-Type: application/json."),
}
"""Of werkzeug's errors. Others below 500 are requests that cannot be understood."""

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC})
"""What the system runs out of for a while."""
_SERVERS_FAULT = 500


def told_error(error: Exception) -> PharosError:
    """Return our error for any other; its message holds nothing of the other's text."""
    if isinstance(error, PharosError):
        return error if error.is_told else _internal()
    if isinstance(error, HTTPException):
        status = error.code or _SERVERS_FAULT
        if status >= _SERVERS_FAULT:
            return _internal()
        return _BY_STATUS.get(status, _not_understood)()
    if isinstance(error, MemoryError):
        return OOMError("The server has not enough memory for this now. Retry later.")
    if isinstance(error, OSError) and error.errno in _EXHAUSTED:
        return EngineUnavailableError("The server has run out of a resource. Retry later.")
    return _internal()


def _not_understood() -> PharosError:
    return InvalidRequestError("The request cannot be understood.")


def _internal() -> PharosError:
    return InternalError(
        "The server failed unexpectedly. Its log has the details under the request id."
    )
