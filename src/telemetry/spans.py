"""A request's spans, made from its record.

The HTTP span begins with the request, so that its ids are known while it runs;
all others are made at the end, from the engine's timestamps. Contexts are
passed, never attached: a stream's thread changes between a ``yield`` and the
next.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode

from . import attributes as a

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.sdk.trace import Tracer as SdkTracer
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import Span, Tracer
    from opentelemetry.util.types import AttributeValue

    from .record import EngineReport, GenerationRecord, RequestRecord

__all__ = ["SpanWriter"]

_UNSET = Status()
_FAILED = Status(StatusCode.ERROR)


def _key(header: str) -> str:
    return "HTTP_" + header.upper().replace("-", "_")


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

    def __init__(self, tracer: Tracer, *, epoch_offset_ns: int | None = None) -> None:
        """Write to ``tracer``.

        Args:
            tracer: Of the process's only TracerProvider.
            epoch_offset_ns: What to add to the monotonic clock for ns since
                1970; taken now by default, and once, so that a step of the wall
                clock never tears a trace.
        """
        self._tracer = tracer
        if epoch_offset_ns is None:
            epoch_offset_ns = time.time_ns() - time.monotonic_ns()
        self._offset_ns = epoch_offset_ns
        self._scope: InstrumentationScope | None = None
        self._carriers = frozenset(map(_key, propagate.get_global_textmap().fields))
        """Where a caller's trace may be in a WSGI environment."""

    def begin(self, environ: Mapping[str, Any], method: str, at: float) -> tuple[Span, Context]:
        """Start the span of an HTTP request; it continues the caller's trace.

        Returns:
            The span, and a context with it for what belongs to the request.
        """
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
        """Write a request's other spans, and end that of its HTTP request."""
        if span.is_recording():
            if record.generation is not None and isinstance(span, ReadableSpan):
                self._scope = span.instrumentation_scope
                self._generation(span.get_span_context(), record, record.generation)
            span.set_attributes(_http_attributes(record))
            if record.route:
                span.update_name(f"{record.method} {record.route}")
            if record.failed:
                span.set_status(_FAILED)
        span.end(self._ns(record.ended_at))

    def _generation(
        self, parent: SpanContext, record: RequestRecord, generation: GenerationRecord
    ) -> None:
        inside = self._write(
            f"{generation.operation} {generation.model}",
            parent,
            (record.started_at, record.ended_at),
            generation,
        )
        for name, begin, end in _phases(generation.engine):
            self._write(name, inside, (begin, end))

    def _write(
        self,
        name: str,
        parent: SpanContext,
        times: tuple[float, float],
        generation: GenerationRecord | None = None,
    ) -> SpanContext:
        """Hand a span that is over to the processors, and return its context.

        Starting one and ending it at once would cost ten times as much, for the
        sampler's answer, which is its parent's, and for guards that nothing
        here needs.
        """
        tracer = cast("SdkTracer", self._tracer)
        context = SpanContext(
            parent.trace_id,
            tracer.id_generator.generate_span_id(),
            is_remote=False,
            trace_flags=parent.trace_flags,
            trace_state=parent.trace_state,
        )
        fields: dict[str, Any] = {
            "context": context,
            "parent": parent,
            "resource": tracer.resource,
            "instrumentation_scope": self._scope,
            "start_time": self._ns(times[0]),
            "end_time": self._ns(times[1]),
        }
        if generation is None:
            span = ReadableSpan(name, **fields)
        else:
            status = _FAILED if generation.failed else _UNSET
            span = _GenerationSpan(name, generation, self._ns, status=status, **fields)
        tracer.span_processor.on_end(span)
        return context

    def _ns(self, at: float) -> int:
        return int(at * 1e9) + self._offset_ns


class _GenerationSpan(ReadableSpan):
    """What a generation's span says is worked out when it is asked for: by the thread that sends it."""

    def __init__(
        self,
        name: str,
        generation: GenerationRecord,
        ns: Callable[[float], int],
        **fields: Any,  # noqa: ANN401 - those of ReadableSpan
    ) -> None:
        super().__init__(name, **fields)
        self._generation = generation
        self._ns = ns
        del self._attributes, self._events

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - one of two
        """Make what is not there yet; called once for each of the two."""
        if name == "_attributes":
            self._attributes = _generation_attributes(self._generation)
            return self._attributes
        if name == "_events":
            self._events = _generation_events(self._generation.engine, self._ns)
            return self._events
        raise AttributeError(name)


def _phases(engine: EngineReport) -> list[tuple[str, float, float]]:
    """Return the phases whose two ends the engine has measured."""
    times = (
        ("queue", engine.accepted_at, engine.prefill_at or engine.finished_at),
        ("prefill", engine.prefill_at, engine.first_token_at or engine.finished_at),
        ("decode", engine.first_token_at, engine.finished_at),
    )
    return [(name, begin, end) for name, begin, end in times if 0 < begin <= end]


def _generation_events(engine: EngineReport, ns: Callable[[float], int]) -> list[Event]:
    events = []
    if engine.prefill_at:
        cached = {a.GEN_AI_CACHED_TOKENS: engine.cached_tokens}
        events.append(Event("prompt_cache.lookup", cached, ns(engine.prefill_at)))
    if engine.first_token_at:
        events.append(Event("first_token", timestamp=ns(engine.first_token_at)))
    for each in engine.resumptions:
        why = {a.RESTART_REASON.name: each.reason}
        events.append(Event("engine.lost", why, ns(each.lost_at)))
        events.append(Event("resumed", timestamp=ns(each.resumed_at)))
    return events


def _http_attributes(record: RequestRecord) -> dict[str, AttributeValue]:
    found: dict[str, AttributeValue] = {
        a.HTTP_STATUS.name: record.status,
        "pharos.request.id": record.request_id,
    }
    if record.route:
        found[a.HTTP_ROUTE.name] = record.route
    if record.error_type:
        found[a.ERROR_TYPE.name] = record.error_type
    return found


def _generation_attributes(generation: GenerationRecord) -> dict[str, AttributeValue]:
    engine = generation.engine
    found: dict[str, AttributeValue] = {
        a.GEN_AI_OPERATION.name: generation.operation,
        a.GEN_AI_PROVIDER.name: "mlx",
        a.GEN_AI_RESPONSE_MODEL.name: generation.model,
        a.GEN_AI_RESPONSE_FINISH_REASONS: engine.endings or (generation.finish_reason,),
        a.GEN_AI_INPUT_TOKENS: engine.prompt_tokens,
        a.GEN_AI_OUTPUT_TOKENS: engine.completion_tokens,
        a.GEN_AI_CACHED_TOKENS: engine.cached_tokens,
        a.FINISH_REASON.name: generation.finish_reason,
    }
    if generation.request_model:
        found[a.GEN_AI_REQUEST_MODEL.name] = generation.request_model
    if generation.max_tokens:
        found[a.GEN_AI_MAX_TOKENS] = generation.max_tokens
    if generation.temperature is not None:
        found[a.GEN_AI_TEMPERATURE] = generation.temperature
    if generation.top_p is not None:
        found[a.GEN_AI_TOP_P] = generation.top_p
    if generation.error_type:
        found[a.ERROR_TYPE.name] = generation.error_type
    return found
