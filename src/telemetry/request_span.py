"""The spans of a finished request, handed on as one and told apart by whoever sends them.

Beginning and ending four spans one by one, for the sampler's answer that is
their parent's and for guards that nothing here needs, would take half of what a
request's telemetry may cost, in the thread that answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode

from . import attributes as a

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span, Tracer
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.util.types import AttributeValue

    from .record import EngineReport, GenerationRecord, RequestRecord

__all__ = ["BegunSpan", "EachSpan", "RequestSpan", "spans_of"]

_UNSET = Status()
_FAILED = Status(StatusCode.ERROR)


@dataclass(frozen=True, slots=True)
class BegunSpan:
    """What is known of a request's span while the request runs."""

    name: str
    context: SpanContext
    parent: SpanContext | None = None
    """The caller's span."""
    start_ns: int = 0
    """Since 1970."""
    attributes: Mapping[str, AttributeValue] | None = None
    """With those of the sampler."""
    is_recording: bool = False
    """Whether anybody will see it."""


class _Phase(NamedTuple):
    """Times of the record."""

    name: str
    begin: float
    end: float
    cut: bool
    """Whether it did not come to its own end: an error or the client's leaving ended it."""


class RequestSpan(ReadableSpan):
    """The span of an HTTP request, which knows those within it."""

    def __init__(
        self,
        begun: BegunSpan,
        record: RequestRecord,
        tracer: Tracer,
        scope: InstrumentationScope,
    ) -> None:
        """End a span.

        Args:
            begun: How it began.
            record: All that is known of the request.
            tracer: Whose span it is.
            scope: That of the tracer.
        """
        self._context = begun.context
        self._begun = begun
        self._record = record
        self._tracer = tracer
        self._scope = scope
        self._offset_ns = begun.start_ns - int(record.started_at * 1e9)
        self._phases = _phases(record)

    @property
    def size(self) -> int:
        """How many spans it is, with those within."""
        return 1 if self._record.generation is None else 2 + len(self._phases)

    def inside(self) -> list[ReadableSpan]:
        """Make the spans within: that of the generation, and those of its phases."""
        record, generation = self._record, self._record.generation
        if generation is None:
            return []
        whole = self._within(
            f"{generation.operation} {generation.model}",
            self.context,
            (record.started_at, record.ended_at),
            attributes=_generation_attributes(generation),
            events=_generation_events(generation.engine, self._ns),
            status=_FAILED if generation.failed else _UNSET,
        )
        return [whole, *(self._phase(each, whole.context, generation) for each in self._phases)]

    def _phase(
        self, phase: _Phase, parent: SpanContext, generation: GenerationRecord
    ) -> ReadableSpan:
        """Make the span of a phase; one that was cut off says by what."""
        fields: dict[str, Any] = {}
        if phase.cut and generation.error_type:
            fields["attributes"] = {a.ERROR_TYPE.name: generation.error_type}
            fields["status"] = _FAILED if generation.failed else _UNSET
        return self._within(phase.name, parent, (phase.begin, phase.end), **fields)

    def _within(
        self,
        name: str,
        parent: SpanContext,
        times: tuple[float, float],
        **fields: Any,  # noqa: ANN401 - those of ReadableSpan
    ) -> ReadableSpan:
        context = SpanContext(
            parent.trace_id,
            self._tracer.id_generator.generate_span_id(),
            is_remote=False,
            trace_flags=parent.trace_flags,
            trace_state=parent.trace_state,
        )
        return ReadableSpan(
            name,
            context=context,
            parent=parent,
            resource=self.resource,
            instrumentation_scope=self.instrumentation_scope,
            start_time=self._ns(times[0]),
            end_time=self._ns(times[1]),
            **fields,
        )

    def _ns(self, at: float) -> int:
        """Turn a time of the record into ns since 1970."""
        return int(at * 1e9) + self._offset_ns

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - of any field
        """Make the fields when somebody asks for one: the thread that sends the span.

        Several that ask at once make the same.
        """
        begun: BegunSpan | None = self.__dict__.get("_begun")
        if begun is None:
            raise AttributeError(name)
        record = self._record
        super().__init__(
            f"{record.method} {record.route}" if record.route else begun.name,
            context=begun.context,
            parent=begun.parent,
            resource=self._tracer.resource,
            attributes={**(begun.attributes or {}), **_http_attributes(record)},
            kind=SpanKind.SERVER,
            instrumentation_scope=self._scope,
            status=_FAILED if record.failed else _UNSET,
            start_time=begun.start_ns,
            end_time=self._ns(record.ended_at),
        )
        return object.__getattribute__(self, name)


def spans_of(span: ReadableSpan) -> list[ReadableSpan]:
    """Return a span and those within it."""
    return [span, *span.inside()] if isinstance(span, RequestSpan) else [span]


class EachSpan(SpanProcessor):
    """Lets a processor that knows nothing of :class:`RequestSpan` see each span."""

    def __init__(self, processor: SpanProcessor) -> None:
        self._processor = processor

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Tell of a span that the tracer has begun, which those of requests are not."""
        self._processor.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        """Tell of a span and of those within it."""
        for each in spans_of(span):
            self._processor.on_end(each)

    def shutdown(self) -> None:
        """End the processor."""
        self._processor.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Let it send what waits."""
        return self._processor.force_flush(timeout_millis)


def _phases(record: RequestRecord) -> list[_Phase]:
    """Return the phases that were begun.

    Each lasts until the next one began, decode until the last token. One that was cut off lasts
    until the request ended, or until the engine says that it stopped before.
    """
    if record.generation is None:
        return []
    engine = record.generation.engine
    last = min(engine.finished_at or record.ended_at, record.ended_at)
    times = (
        ("queue", engine.accepted_at, engine.prefill_at),
        ("prefill", engine.prefill_at, engine.first_token_at),
        ("decode", engine.first_token_at, engine.finished_at if engine.complete else 0.0),
    )
    phases = [_Phase(name, begin, end or last, not end) for name, begin, end in times]
    return [each for each in phases if 0 < each.begin <= each.end]


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
    if generation.content is not None:
        found[a.GEN_AI_INPUT_MESSAGES] = generation.content.input_messages()
        found[a.GEN_AI_OUTPUT_MESSAGES] = generation.content.output_messages()
    return found
