"""The access line of a request: one frozen object, and the log's record that carries it.

It has no room for a prompt, an answer, a key, an address or a path.
"""

from __future__ import annotations

import logging
from typing import Final

import msgspec

__all__ = ["REQUESTS", "RequestLine", "RequestLogRecord", "log_request"]

REQUESTS: Final = "mlx_pharos.requests"
"""The logger of these lines."""
_EVENT: Final = "request"
_requests = logging.getLogger(REQUESTS)


class RequestLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the log says about one finished request, in the line's order.

    Fields that say nothing are left out: those that are their defaults, the very objects. A zero
    that was computed is another one, so whoever makes a line leaves that out.
    """

    request_id: str
    trace_id: str = ""
    span_id: str = ""
    """Of the request's own span."""
    method: str
    route: str = ""
    """The route's rule, never the path that the client sent."""
    status: int
    """The HTTP status that the client saw; 499 where it left before there was one."""
    duration_seconds: float
    """From the request's arrival to the last byte."""
    client_left: bool = False
    """Whether the client closed the connection before the end."""
    model: str = ""
    """A configured name, never text from the request."""
    stream: bool = False
    finish_reason: str = ""
    """How the generation ended, in one word: as in the metrics."""
    error_code: str = ""
    failed: bool = False
    """Whether the server is at fault, also where the status had been sent before."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queue_seconds: float = 0.0
    first_token_seconds: float = 0.0
    """From the request's arrival to its first token."""

    @property
    def level(self) -> int:
        """Failures are errors, refusals warnings, all else is information."""
        if self.failed or self.status == 500:  # noqa: PLR2004 - HTTP
            return logging.ERROR
        return logging.WARNING if self.status >= 500 else logging.INFO  # noqa: PLR2004 - HTTP


class RequestLogRecord(logging.LogRecord):
    """What :mod:`logging` hands to the handlers: the line, and its fields as attributes."""

    __slots__ = ("_line",)  # no field, so not among the others

    def __init__(self, line: RequestLine) -> None:
        """Carry ``line``."""
        super().__init__(REQUESTS, line.level, "", 0, _EVENT, (), None)
        self._line = line
        vars(self).update(msgspec.to_builtins(line))

    def json(self, timestamp: str) -> str:
        """Return the line as JSON, straight from what it was made of.

        Raises:
            UnicodeEncodeError: It has half a surrogate pair in it.
        """
        head = f'{{"event":"{_EVENT}","level":"{self.levelname.lower()}","logger":"{REQUESTS}",'
        return f'{head}{msgspec.json.encode(self._line).decode()[1:-1]},"timestamp":"{timestamp}"}}'


def log_request(line: RequestLine) -> None:
    """Log a finished request.

    Any thread may call it. It never raises: :mod:`logging` swallows a broken stderr.
    """
    if _requests.isEnabledFor(line.level):
        _requests.handle(RequestLogRecord(line))
