"""A request's spans, made from its record.

With the request the sampler is asked, and the ids of the HTTP span are drawn, so
that they are known while it runs; all else is made at the end, from the engine's
timestamps. Contexts are passed, never attached: a stream's thread changes
between a ``yield`` and the next.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

from . import attributes as a
from .request_span import BegunSpan, RequestSpan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.trace import Tracer

    from .record import RequestRecord

__all__ = ["SpanWriter"]


def _key(header: str) -> str:
    return "HTTP_" + header.upper().replace("-", "_")


_FLAGS = {
    (sampled, is_random): TraceFlags(
        (TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
        | (TraceFlags.RANDOM_TRACE_ID if is_random else TraceFlags.DEFAULT)
    )
    for sampled in (False, True)
    for is_random in (False, True)
}
_APART_NS = 1_000_000_000
"""Less is the clocks' drift, or a pause between the looks at the two."""


_BAGGAGE = _key("baggage")
"""Nothing here would use it, and reading 8 KB of it takes up to tenths of a second."""


class _Headers(Getter["Mapping[str, Any]"]):
    """Finds a request's headers in its WSGI environment, but its baggage."""

    def get(self, carrier: Mapping[str, Any], key: str) -> list[str] | None:
        """Return the header's values."""
        name = _key(key)
        value = carrier.get(name) if name != _BAGGAGE else None
        return None if value is None else [value]

    def keys(self, carrier: Mapping[str, Any]) -> list[str]:
        """Return the names of all headers."""
        return [key[5:].lower().replace("_", "-") for key in carrier if key.startswith("HTTP_")]


_HEADERS = _Headers()


def _scope_of(tracer: Tracer) -> InstrumentationScope:
    """Return what the tracer's own spans would say of where they are from, less attributes of it."""
    if not isinstance(tracer, SdkTracer):
        return InstrumentationScope("")
    info = tracer.instrumentation_info
    return InstrumentationScope(info.name, info.version, info.schema_url)


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
        self._scope = _scope_of(tracer)
        self._wall_ns = wall_ns
        self._follows = epoch_offset_ns is None
        self._offset_ns = epoch_offset_ns or 0
        self._follow()
        fields = propagate.get_global_textmap().fields
        self._carriers = frozenset(map(_key, fields)) - {_BAGGAGE}
        """Where a caller's trace may be in a WSGI environment."""

    def begin(self, environ: Mapping[str, Any], method: str, at: float) -> BegunSpan:
        """Begin the span of an HTTP request; it continues the caller's trace.

        As ``Tracer.start_span()`` would, less the object that one could add things to meanwhile,
        the SDK's limits of attributes, and ``on_start()`` of processors: the sampler decides, the
        ids are drawn, and all else is made at the end.
        """
        self._follow()
        outer, parent = Context(), None
        if not environ.keys().isdisjoint(self._carriers):
            outer = propagate.extract(environ, context=outer, getter=_HEADERS)
            caller = trace.get_current_span(outer).get_span_context()
            parent = caller if caller.is_valid else None
        tracer = self._tracer
        if not isinstance(tracer, SdkTracer):  # telemetry is switched off
            return BegunSpan(method, parent or trace.INVALID_SPAN_CONTEXT)
        ids = tracer.id_generator
        trace_id = parent.trace_id if parent else ids.generate_trace_id()
        attributes = {
            a.HTTP_METHOD.name: method,
            "url.scheme": environ.get("wsgi.url_scheme", ""),
        }
        sampled = tracer.sampler.should_sample(
            outer, trace_id, method, SpanKind.SERVER, attributes, ()
        )
        is_random = parent.trace_flags.random_trace_id if parent else ids.is_trace_id_random()
        context = SpanContext(
            trace_id,
            ids.generate_span_id(),
            is_remote=False,
            trace_flags=_FLAGS[sampled.decision is Decision.RECORD_AND_SAMPLE, bool(is_random)],
            trace_state=sampled.trace_state,
        )
        return BegunSpan(
            method, context, parent, self._ns(at), sampled.attributes,
            is_recording=sampled.decision is not Decision.DROP,
        )  # fmt: skip

    def finish(self, begun: BegunSpan, record: RequestRecord) -> None:
        """Hand a request's spans to the processors, as one :class:`RequestSpan`."""
        tracer = self._tracer
        if begun.is_recording and isinstance(tracer, SdkTracer):
            tracer.span_processor.on_end(RequestSpan(begun, record, tracer, self._scope))

    def _follow(self) -> None:
        """Take the offset anew where the time of day went elsewhere."""
        offset_ns = self._wall_ns() - time.monotonic_ns()
        if self._follows and abs(offset_ns - self._offset_ns) > _APART_NS:
            self._offset_ns = offset_ns

    def _ns(self, at: float) -> int:
        return int(at * 1e9) + self._offset_ns
