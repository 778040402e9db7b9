"""The one place where a finished request becomes metrics, spans and a line of the log."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from . import attributes as a
from .reading import Reading
from .request_line import RequestLine, log_request
from .series import SeriesBook

if TYPE_CHECKING:
    from collections.abc import Collection

    from opentelemetry.trace import SpanContext

    from .collector import MetricsCollector
    from .correlation import TraceIds
    from .instruments import Instruments
    from .record import EngineReport, RequestRecord
    from .series import GenerationSeries

__all__ = ["Recorder"]

_DIGITS = 4
"""Of the seconds in the log."""


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
        self._refusals = instruments.refusals
        self._collector = collector
        self._book = SeriesBook(instruments, models)
        self._lock = threading.Lock()
        self._active: dict[str, int] = {}
        instruments.observe("http.server.active_requests", self._read_active)
        for reason in a.REFUSAL_REASON.values:
            # Zeros from the start: an alert on a rate sees the first refusal too.
            self._refusals.add(0, {a.REFUSAL_REASON.name: reason})

    def begin(self, method: str) -> None:
        """Count a request that has arrived."""
        with self._lock:
            self._active[method] = self._active.get(method, 0) + 1

    def finish(self, record: RequestRecord, mark: SpanContext, trace_ids: TraceIds) -> None:
        """Record a request that has ended.

        Args:
            record: All that is known of it.
            mark: Its span, for the exemplars.
            trace_ids: Of its span, for the log.
        """
        with self._lock:
            self._active[record.method] -= 1
        self._book.http(record).fold(record.seconds, mark=mark)
        if record.refusal:
            reason = a.REFUSAL_REASON.close(record.refusal)
            self._refusals.add(1, {a.REFUSAL_REASON.name: reason})
        generation = record.generation
        if generation is not None:
            series = self._book.generation(generation)
            # The window is told before: its slice may end.
            self._collector.count_request(series.finished)
            self._collector.take_latency(record.seconds, series.latency, mark)
            if generation.succeeded:
                _fold_success(series, record, generation.engine, mark)
            _fold_phases(series, generation.engine, mark)
            _count_tokens(series, generation.engine)
        log_request(_line(record, trace_ids))

    def _read_active(self) -> list[Reading]:
        with self._lock:
            return [
                Reading(count, {a.HTTP_METHOD.name: method})
                for method, count in self._active.items()
            ]


def _fold_success(
    series: GenerationSeries, record: RequestRecord, engine: EngineReport, mark: SpanContext
) -> None:
    if engine.first_token_at:
        series.first_token.fold(record.first_token_seconds, mark=mark)
    if engine.decode_intervals:
        series.per_token.fold(engine.decode_seconds / engine.decode_intervals, mark=mark)


def _fold_phases(series: GenerationSeries, engine: EngineReport, mark: SpanContext) -> None:
    """Record phases that came to their own end; what was cut off has a span and is no sample."""
    prefill_at, first_token_at = engine.prefill_at, engine.first_token_at
    if prefill_at:
        series.queue.fold(max(0.0, prefill_at - engine.accepted_at), mark=mark)
    if prefill_at and first_token_at:
        series.prefill.fold(max(0.0, first_token_at - prefill_at), mark=mark)
    if first_token_at and engine.complete:
        series.decode.fold(max(0.0, engine.finished_at - first_token_at), mark=mark)


def _count_tokens(series: GenerationSeries, engine: EngineReport) -> None:
    """Record tokens that were worked on."""
    prompt, cached, completion = (
        engine.prompt_tokens,
        engine.cached_tokens,
        engine.completion_tokens,
    )
    if prompt:
        series.input_size.fold(prompt)
    if prompt > cached:
        series.computed.add(prompt - cached)
    if cached:
        series.cached.add(cached)
    if completion:
        series.output_size.fold(completion)
        series.output.add(completion)
    if engine.longest_completion:
        series.longest_choice.fold(engine.longest_completion)


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
        }
        if first_token := round(record.first_token_seconds, _DIGITS):
            fields["first_token_seconds"] = first_token
        if engine.prefill_at and (queue := round(engine.prefill_at - engine.accepted_at, _DIGITS)):
            fields["queue_seconds"] = queue
    return RequestLine(
        request_id=record.request_id,
        trace_id=trace_ids[0],
        span_id=trace_ids[1],
        method=record.method,
        route=record.route,
        status=record.status,
        duration_seconds=round(record.seconds, _DIGITS),
        client_left=record.client_left,
        error_code=record.error_code,
        failed=record.failed and not record.refusal,
        **fields,
    )
