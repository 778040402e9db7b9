"""The access line of a request: one frozen object, and the log's record that carries it.

It has no room for a prompt, an answer, a key, an address or a path.
"""

from __future__ import annotations

import logging
from typing import Annotated, Final

import msgspec

__all__ = ["REQUESTS", "RequestLine", "RequestLogRecord", "log_request"]

REQUESTS: Final = "mlx_pharos.requests"
"""The logger of these lines."""
_EVENT: Final = "request"
_requests = logging.getLogger(REQUESTS)
_NO_GENERATION = "it is no generation request"
_NONE = "there were none"
_TRACED = "`OTEL_SDK_DISABLED` is set, and the request has no `traceparent`"


def _said(meaning: str, *, when: str = "") -> msgspec.Meta:
    """Say what a field means, and when it is left out; the reference is made of it."""
    return msgspec.Meta(description=meaning, extra={"when": when})


class RequestLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the log says about one finished request, in the line's order.

    Fields that say nothing are left out: those that are their defaults, the very objects. A zero
    that was computed is another one, so whoever makes a line leaves that out.
    """

    request_id: Annotated[str, _said("The answer's `X-Request-Id`.")]
    trace_id: Annotated[str, _said("Of the request's span.", when=_TRACED)] = ""
    span_id: Annotated[str, _said("Of the request's own span.", when=_TRACED)] = ""
    method: Annotated[str, _said("A known method, or `_OTHER`.")]
    route: Annotated[
        str, _said("The route's rule, never the path that was sent.", when="no route matched")
    ] = ""
    status: Annotated[
        int, _said("What the client saw; 499 where it left before there was a status.")
    ]
    duration_seconds: Annotated[float, _said("From the request's arrival to the last byte.")]
    client_left: Annotated[
        bool,
        _said("The client closed the connection before the end.", when="it did not"),
    ] = False
    model: Annotated[
        str, _said("The first served name, never text from the request.", when=_NO_GENERATION)
    ] = ""
    stream: Annotated[bool, _said("A stream was asked for.", when="it was not")] = False
    finish_reason: Annotated[
        str, _said("How the generation ended, in one word.", when=_NO_GENERATION)
    ] = ""
    error_code: Annotated[
        str, _said("The `code` of the error that the client was told.", when="it was told none")
    ] = ""
    failed: Annotated[
        bool,
        _said(
            "The server is at fault, also where the status had been sent before.",
            when="it is not, as with a refusal",
        ),
    ] = False
    prompt_tokens: Annotated[
        int,
        _said("Tokens of prompts that were worked through, cached ones included.", when=_NONE),
    ] = 0
    cached_tokens: Annotated[
        int, _said("Tokens of prompts that came from the prompt cache.", when=_NONE)
    ] = 0
    completion_tokens: Annotated[int, _said("Tokens that were generated.", when=_NONE)] = 0
    queue_seconds: Annotated[
        float,
        _said(
            "From when the engine took the request to its first prefill step.",
            when="there was none, or it is less than 0.00005",
        ),
    ] = 0.0
    first_token_seconds: Annotated[
        float,
        _said(
            "From the request's arrival to its first token.",
            when="there was none, or it is less than 0.00005",
        ),
    ] = 0.0

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
