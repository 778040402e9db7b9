"""A request's spans, made from its record.

The HTTP span begins with the request, so that the sampler is asked and its ids
are known while it runs; all others are made at the end, from the engine's
timestamps. Contexts are passed, never attached: a stream's thread changes
between a ``yield`` and the next.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind

from . import attributes as a
from .request_span import RequestSpan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.sdk.trace import Tracer as SdkTracer
    from opentelemetry.trace import Span, Tracer

    from .record import RequestRecord

__all__ = ["SpanWriter"]


def _key(header: str) -> str:
    return "HTTP_" + header.upper().replace("-", "_")


_APART_NS = 1_000_000_000
"""Less is the clocks' drift, or a pause between the looks at the two."""


class _Headers(Getter["Mapping[str, Any]"]):
    """Finds a request's headers in its WSGI environment."""

    def get(self, carrier: Mapping[str, Any], key: str) -> list[str] | None:
        """Return the header's values."""
        value = carrier.get(_key(key))
        return None if value is None else [value]

    def keys(self, carrier: Mapping[str, Any]) -> list[str]:
        """Return the names of all headers."""
        return [key[5:].lower().replace("_", "-") for key in carrier if key.startswith("HTTP_")]


_HEADERS = _Headers()


class SpanWriter:
    """Turns monotonic times into spans. Safe from any thread."""

    def __init__(
        self,
        tracer: Tracer,
        *,
        epoch_offset_ns: int | None = None,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Write to ``tracer``.

        Args:
            tracer: Of the process's only TracerProvider.
            epoch_offset_ns: What to add to the monotonic clock for ns since 1970. By default what
                it is now; where the two clocks come apart by a second, as when the machine slept
                or its clock was set, requests that begin later have another one. A request has one
                for all its spans, so nothing tears a trace.
            wall_ns: The time of day, ns since 1970.
        """
        self._tracer = tracer
        self._wall_ns = wall_ns
        self._follows = epoch_offset_ns is None
        self._offset_ns = epoch_offset_ns or 0
        self._follow()
        self._carriers = frozenset(map(_key, propagate.get_global_textmap().fields))
        """Where a caller's trace may be in a WSGI environment."""

    def begin(self, environ: Mapping[str, Any], method: str, at: float) -> tuple[Span, Context]:
        """Start the span of an HTTP request; it continues the caller's trace.

        Returns:
            The span, and a context with it for what belongs to the request.
        """
        self._follow()
        parent = Context()
        if not self._carriers.isdisjoint(environ):
            parent = propagate.extract(environ, context=parent, getter=_HEADERS)
        span = self._tracer.start_span(
            method,
            context=parent,
            kind=SpanKind.SERVER,
            attributes={
                a.HTTP_METHOD.name: method,
                "url.scheme": environ.get("wsgi.url_scheme", ""),
            },
            start_time=self._ns(at),
        )
        return span, trace.set_span_in_context(span, parent)

    def finish(self, span: Span, record: RequestRecord) -> None:
        """Hand a request's spans to the processors, as one :class:`RequestSpan`."""
        if isinstance(span, ReadableSpan) and span.is_recording():
            # Instead of span.end(), which would check and copy all of it.
            tracer = cast("SdkTracer", self._tracer)
            offset_ns = (span.start_time or 0) - int(record.started_at * 1e9)
            whole = RequestSpan(
                span, record, lambda at: int(at * 1e9) + offset_ns, tracer.id_generator
            )
            tracer.span_processor.on_end(whole)
        else:
            span.end()

    def _follow(self) -> None:
        """Take the offset anew where the time of day went elsewhere."""
        offset_ns = self._wall_ns() - time.monotonic_ns()
        if self._follows and abs(offset_ns - self._offset_ns) > _APART_NS:
            self._offset_ns = offset_ns

    def _ns(self, at: float) -> int:
        return int(at * 1e9) + self._offset_ns
