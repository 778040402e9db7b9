"""The log of the server process: lines on stderr, for people or for programs.

Everything that goes through :mod:`logging` ends here, so the lines of the
libraries look like ours. The access line of a request is made from one frozen
:class:`RequestLine`, which has no room for a prompt, an answer, a key, an
address or a path. All other lines are sanitized, and of an exception they say
its kind and where it was; its text only where its shape is known, or at the
level ``debug``.
"""

from __future__ import annotations

import json
import logging
import operator
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import msgspec
import structlog

from ..resilience.failure_text import describe_failure
from ..resilience.sanitize import sanitize_error_message
from .correlation import CURRENT

if TYPE_CHECKING:
    from typing import TextIO

    from structlog.typing import EventDict, Processor

    from .log_writer import LogWriter

__all__ = ["RequestLine", "configure_log", "log_request"]

_requests = logging.getLogger("mlx_pharos.requests")


class RequestLine(msgspec.Struct, frozen=True, kw_only=True):
    """What the log says about one finished request. Zeros and empty fields are left out."""

    request_id: str
    trace_id: str = ""
    span_id: str = ""
    """Of the request's own span."""
    method: str
    route: str
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


_FIELDS = RequestLine.__struct_fields__
_KNOWN = frozenset(_FIELDS)
_values = operator.attrgetter(*_FIELDS)


def log_request(line: RequestLine) -> None:
    """Log a finished request: failures as errors, refusals as warnings, all else as information.

    Any thread may call it. It never raises: :mod:`logging` swallows a broken stderr.
    """
    level = logging.WARNING if line.status >= 500 else logging.INFO  # noqa: PLR2004 - HTTP
    if line.failed or line.status == 500:  # noqa: PLR2004 - HTTP
        level = logging.ERROR
    if not _requests.isEnabledFor(level):
        return
    # As Logger.log() would, less the search for the line that called it.
    record = logging.LogRecord(_requests.name, level, "", 0, "request", (), None)
    record.__dict__.update(line_fields(line))
    _requests.handle(record)


def line_fields(line: RequestLine) -> dict[str, object]:
    """Return what the line says, in its order."""
    return {
        name: round(value, 4) if type(value) is float else value
        for name, value in zip(_FIELDS, _values(line), strict=True)
        if value
    }


def configure_log(
    *,
    level: Literal["debug", "info", "warning", "error"] = "info",
    style: Literal["auto", "json", "console"] = "auto",
    stream: TextIO | LogWriter | None = None,
) -> None:
    """Send this process's log to ``stream`` (stderr by default); replaces what was set before."""
    target = stream or sys.stderr
    if style == "auto":
        style = "console" if target.isatty() else "json"
    handler = logging.StreamHandler(target)
    formatter = _JsonFormatter if style == "json" else structlog.stdlib.ProcessorFormatter
    handler.setFormatter(
        formatter(
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
                _sanitize,
                _add_trace,
                structlog.processors.TimeStamper(fmt="iso", utc=style == "json"),
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _FailureText(with_text=level == "debug"),
                *_renderers(style, colors=target.isatty()),
            ],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if level != "debug":
        # waitress tells of every client that hangs up and every request that waits for a thread.
        logging.getLogger("waitress").setLevel(logging.WARNING)
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)


class _JsonFormatter(structlog.stdlib.ProcessorFormatter):
    """Writes access lines without the steps that only other lines need: half of their price."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        if record.name != _requests.name or record.exc_info:
            return super().format(record)
        event = {
            "event": record.msg,
            "level": record.levelname.lower(),
            "logger": record.name,
            **{name: value for name, value in vars(record).items() if name in _KNOWN},
            "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        }
        return _json(event)


def _json(event: object, **_: object) -> str:
    try:
        return msgspec.json.encode(event, enc_hook=repr).decode()
    except (UnicodeEncodeError, ValueError, TypeError):  # half a surrogate pair, a huge integer
        return json.dumps(event, default=repr, skipkeys=True)


_OURS = "mlx_pharos"


def _sanitize(_: object, __: str, event: EventDict) -> EventDict:
    """Clean what others wrote. The fields of our own lines are ours; a route looks like a path."""
    event["event"] = sanitize_error_message(str(event["event"]))
    event.pop("stack_info", None)
    if not str(event.get("logger", "")).startswith(_OURS):
        for name, value in event.items():
            if isinstance(value, str) and name not in {"event", "level", "logger"}:
                event[name] = sanitize_error_message(value)
    return event


class _FailureText:
    """Puts what may be said of an exception into the line."""

    def __init__(self, *, with_text: bool) -> None:
        self._with_text = with_text

    def __call__(self, _: object, __: str, event: EventDict) -> EventDict:
        info = event.pop("exc_info", None)
        error = info[1] if isinstance(info, tuple) else info
        if isinstance(error, BaseException):
            event["exception"] = describe_failure(error, with_text=self._with_text)
        return event


def _add_trace(_: object, __: str, event: EventDict) -> EventDict:
    """Say to which request a line belongs, where it was written while one was answered."""
    trace_id, span_id = CURRENT.get()
    if trace_id:
        event.setdefault("trace_id", trace_id)
        event.setdefault("span_id", span_id)
    return event


def _renderers(style: Literal["json", "console"], *, colors: bool) -> list[Processor]:
    if style == "json":
        return [structlog.processors.JSONRenderer(_json)]
    return [structlog.dev.ConsoleRenderer(colors=colors)]
