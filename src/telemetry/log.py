"""The log of the server process: lines on stderr, for people or for programs.

Everything that goes through :mod:`logging` ends here, so the lines of the
libraries look like ours. All lines but those of requests (:mod:`.request_line`)
are sanitized, and of an exception they say its kind and where it was; its text
only where its shape is known, or at the level ``debug``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import structlog

from ..resilience.failure_text import describe_failure
from ..resilience.sanitize import sanitize_error_message
from .correlation import CURRENT
from .request_line import RequestLogRecord

if TYPE_CHECKING:
    from typing import TextIO

    from structlog.typing import EventDict, Processor

    from .log_writer import LogWriter

__all__ = ["LINE_FIELDS", "configure_log"]

LINE_FIELDS: Final = {
    "event": ("What is said; `request` in an access line.", ""),
    "level": ("`debug`, `info`, `warning`, `error` or `critical`.", ""),
    "logger": ("Who says it; `mlx_pharos.requests` in an access line.", ""),
    "trace_id": ("Of the request that was being answered.", "none was"),
    "span_id": ("Of that request's own span.", "none was"),
    "exception": ("Kind and place of an exception, and of what caused it.", "there was none"),
    "timestamp": ("When it was written: UTC, ISO 8601, with microseconds.", ""),
}
"""What lines in JSON have: what a field means, and when it is left out."""


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
    """Writes access lines without the steps that only other lines need."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        if isinstance(record, RequestLogRecord):
            with contextlib.suppress(UnicodeEncodeError):
                return record.json(datetime.now(UTC).isoformat().replace("+00:00", "Z"))
        return super().format(record)


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
