"""The one place where a finished request becomes metrics, spans and a line of the log."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from . import attributes as a
from .instruments import Reading
from .log import RequestLine, log_request

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from opentelemetry.context import Context

    from .collector import MetricsCollector
    from .correlation import TraceIds
    from .instruments import Instruments
    from .record import EngineReport, GenerationRecord, RequestRecord

__all__ = ["Recorder"]

_Attributes = dict[str, str]


class Recorder:
    """Records requests. Safe from any thread."""

    def __init__(
        self,
        instruments: Instruments,
        collector: MetricsCollector,
        *,
        models: Collection[str],
    ) -> None:
        """Record to ``instruments``, whose face for users is ``collector``.

        Args:
            instruments: What is recorded.
            collector: Takes latencies and counts.
            models: The served names; whatever else a record names is not theirs.
        """
        self._instruments = instruments
        self._collector = collector
        self._models = frozenset(models)
        self._lock = threading.Lock()
        self._active: dict[str, int] = {}
        instruments.observe("http.server.active_requests", self._read_active)

    def begin(self, method: str) -> None:
        """Count a request that has arrived."""
        with self._lock:
            self._active[method] = self._active.get(method, 0) + 1

    def finish(self, record: RequestRecord, context: Context, trace_ids: TraceIds) -> None:
        """Record a request that has ended.

        Args:
            record: All that is known of it.
            context: With its span, for the exemplars.
            trace_ids: Of its span, for the log.
        """
        with self._lock:
            self._active[record.method] -= 1
        attributes: dict[str, str | int] = {
            a.HTTP_METHOD.name: record.method,
            a.HTTP_STATUS.name: record.status,
        }
        if record.route:
            attributes[a.HTTP_ROUTE.name] = record.route
        if record.error_type:
            attributes[a.ERROR_TYPE.name] = a.ERROR_TYPE.close(record.error_type)
        self._instruments.http_request_duration.record(record.seconds, attributes, context)
        if record.refusal:
            reason = a.REFUSAL_REASON.close(record.refusal)
            self._instruments.refusals.add(1, {a.REFUSAL_REASON.name: reason})
        if record.generation is not None:
            self._generation(record, record.generation, context)
        log_request(_line(record, trace_ids))

    def _generation(
        self, record: RequestRecord, generation: GenerationRecord, context: Context
    ) -> None:
        """Record what only generations have; the window is told before, its slice may end."""
        error = a.ERROR_TYPE.close(generation.error_type) if generation.error_type else ""
        model = {a.MODEL.name: generation.model}
        finished = model | {a.FINISH_REASON.name: generation.finish_reason}
        gen_ai = self._gen_ai(generation)
        failed = gen_ai | {a.ERROR_TYPE.name: error} if error else gen_ai
        if error:
            finished[a.ERROR_TYPE.name] = error
        self._collector.count_request(finished, context)
        self._collector.take_latency(record.seconds, failed, context)
        if generation.succeeded:
            self._success(record, generation.engine, gen_ai, context)
        self._engine(generation.engine, model)

    def _gen_ai(self, generation: GenerationRecord) -> _Attributes:
        attributes = {
            a.GEN_AI_OPERATION.name: generation.operation,
            a.GEN_AI_PROVIDER.name: "mlx",
            a.GEN_AI_RESPONSE_MODEL.name: generation.model,
        }
        if generation.request_model:
            asked = a.close_model(generation.request_model, self._models)
            attributes[a.GEN_AI_REQUEST_MODEL.name] = asked
        return attributes

    def _success(
        self, record: RequestRecord, engine: EngineReport, gen_ai: _Attributes, context: Context
    ) -> None:
        instruments = self._instruments
        if engine.first_token_at:
            instruments.gen_ai_time_to_first_token.record(
                record.first_token_seconds, gen_ai, context
            )
        if engine.decode_intervals:
            mean = engine.decode_seconds / engine.decode_intervals
            instruments.gen_ai_time_per_output_token.record(mean, gen_ai)

    def _engine(self, engine: EngineReport, model: Mapping[str, str]) -> None:
        """Record phases that were begun and ended, and tokens that were worked on."""
        instruments = self._instruments
        if engine.prefill_at:
            waited = engine.prefill_at - engine.accepted_at
            instruments.queue_duration.record(max(0.0, waited), model)
        if engine.prefill_at and engine.first_token_at:
            prefill = engine.first_token_at - engine.prefill_at
            instruments.prefill_duration.record(max(0.0, prefill), model)
        if engine.first_token_at and engine.finished_at:
            decode = engine.finished_at - engine.first_token_at
            instruments.decode_duration.record(max(0.0, decode), model)
        kind, size = a.TOKEN_TYPE.name, instruments.request_tokens
        if engine.prompt_tokens:
            size.record(engine.prompt_tokens, {**model, kind: "input"})
        if engine.completion_tokens:
            size.record(engine.completion_tokens, {**model, kind: "output"})
        counts = {
            "input_computed": engine.prompt_tokens - engine.cached_tokens,
            "input_cached": engine.cached_tokens,
            "output": engine.completion_tokens,
        }
        for name, count in counts.items():
            if count:
                instruments.tokens.add(count, {**model, kind: name})

    def _read_active(self) -> list[Reading]:
        with self._lock:
            return [
                Reading(count, {a.HTTP_METHOD.name: method})
                for method, count in self._active.items()
            ]


def _line(record: RequestRecord, trace_ids: TraceIds) -> RequestLine:
    generation = record.generation
    fields: dict[str, Any] = {}
    if generation is not None:
        engine = generation.engine
        fields = {
            "model": generation.model,
            "stream": generation.stream,
            "finish_reason": generation.finish_reason,
            "prompt_tokens": engine.prompt_tokens,
            "cached_tokens": engine.cached_tokens,
            "completion_tokens": engine.completion_tokens,
            "first_token_seconds": record.first_token_seconds,
        }
        if engine.prefill_at:
            fields["queue_seconds"] = engine.prefill_at - engine.accepted_at
    return RequestLine(
        request_id=record.request_id,
        trace_id=trace_ids[0],
        span_id=trace_ids[1],
        method=record.method,
        route=record.route,
        status=record.status,
        duration_seconds=record.seconds,
        client_left=record.client_left,
        error_code=record.error_code,
        failed=record.failed,
        **fields,
    )
