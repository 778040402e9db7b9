"""The log for a collector: the same lines that stderr gets, as OpenTelemetry's log records."""

from __future__ import annotations

import copy
import logging
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from opentelemetry._logs import SeverityNumber
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from ..resilience.sanitize import sanitize_error_message
from .correlation import CURRENT
from .lockless import LocklessHandler
from .request_line import REQUESTS, RequestLogRecord

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk._logs import LoggerProvider

    from .correlation import TraceIds
    from .exporting import LogQueue

__all__ = ["OtlpLogHandler"]

_SEVERITIES = (
    (logging.CRITICAL, SeverityNumber.FATAL),
    (logging.ERROR, SeverityNumber.ERROR),
    (logging.WARNING, SeverityNumber.WARN),
    (logging.INFO, SeverityNumber.INFO),
    (logging.NOTSET, SeverityNumber.DEBUG),
)
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record has; the rest was given by whoever logs."""
_EXPORTER = "urllib3"
"""The exporter's own transport: its debug lines about sending lines would never end."""
_OURS = "mlx_pharos"
"""Loggers whose fields are composed by us; those of others are sanitized."""
_LOGGERS = 256
"""Names of loggers that are remembered: those of a program are some dozen."""
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class OtlpLogHandler(LocklessHandler):
    """Hands lines to a queue. Any thread; never waits for the collector.

    The SDK's own handler is deprecated, and puts the source file's path and the
    text of exceptions into each record. It also makes the record in the thread
    that logs, which takes about as long as all else that the end of a request does.
    """

    def __init__(self, provider: LoggerProvider, queue: LogQueue) -> None:
        """Send with ``queue``, which has to be a processor of ``provider``."""
        super().__init__()
        self._queue = queue
        # A provider makes its loggers anew each time that it is asked for one.
        self._logger = lru_cache(maxsize=_LOGGERS)(provider.get_logger)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue it; an error in here ends in :meth:`handleError` and never at the caller."""
        if record.name.startswith(_EXPORTER):
            return
        try:
            self._queue.put(partial(self._send, _settled(record), CURRENT.get()))
        except Exception:  # noqa: BLE001 - a log line must never fail what it tells of
            self.handleError(record)

    def _send(self, record: logging.LogRecord, current: TraceIds) -> None:
        """Have the provider emit it. In the thread that sends; ``current`` is the trace of its line."""
        try:
            attributes = _attributes(record)
            logged_at = int(record.created * 1e9)
            self._logger(record.name).emit(
                timestamp=logged_at,
                observed_timestamp=logged_at,
                context=_context(attributes, current),
                severity_number=_severity(record.levelno),
                severity_text=record.levelname,
                body=_body(record),
                attributes=attributes,
            )
        except Exception:  # noqa: BLE001 - the other lines of the batch go on
            self.handleError(record)


def _settled(record: logging.LogRecord) -> logging.LogRecord:
    """Return it without what may change, or would keep other things alive, until it is sent."""
    if isinstance(record, RequestLogRecord):
        return record
    settled = copy.copy(record)
    settled.msg, settled.args = record.getMessage(), None
    settled.exc_info = None
    fields = vars(settled)
    for name, value in vars(record).items():
        if name not in _STANDARD and not isinstance(value, int | float):
            fields[name] = str(value)
    if record.exc_info and record.exc_info[0]:
        fields["exception.type"] = record.exc_info[0].__name__
    return settled


def _body(record: logging.LogRecord) -> str:
    """Return the message; that of a finished request is one word."""
    message = record.getMessage()
    return message if record.name == REQUESTS else sanitize_error_message(message)


def _severity(level: int) -> SeverityNumber:
    return next(number for least, number in _SEVERITIES if level >= least)


def _attributes(record: logging.LogRecord) -> dict[str, Any]:
    return {
        name: _field(record, value)
        for name, value in vars(record).items()
        if name not in _STANDARD and not name.startswith("_")
    }


def _field(record: logging.LogRecord, value: object) -> str | int | float:
    if isinstance(value, int | float):
        return value
    return str(value) if record.name.startswith(_OURS) else sanitize_error_message(str(value))


def _context(attributes: dict[str, Any], current: TraceIds) -> Context:
    """Take the trace from the line itself, or from what was being answered."""
    trace_id, span_id = current
    trace_id = attributes.pop("trace_id", trace_id)
    span_id = attributes.pop("span_id", span_id)
    if not (trace_id and span_id):
        return set_span_in_context(NonRecordingSpan(SpanContext(0, 0, is_remote=False)))
    context = SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=_SAMPLED
    )
    return set_span_in_context(NonRecordingSpan(context))
