"""Which trace the running code belongs to, for the log.

A context variable of our own and not OpenTelemetry's context: it is set and
reset around each call into the application, so it never spans a ``yield``, and
it costs a fraction of a microsecond.
"""

from __future__ import annotations

from contextvars import ContextVar

__all__ = ["CURRENT", "NO_TRACE", "TraceIds"]

TraceIds = tuple[str, str]
"""Trace id and span id in hexadecimal; empty outside of a request."""
NO_TRACE: TraceIds = ("", "")
CURRENT: ContextVar[TraceIds] = ContextVar("pharos_trace", default=NO_TRACE)
