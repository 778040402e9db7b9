"""What stands between the SDK and the exporters: bounded, counted, closed by a deadline."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk._logs import LogRecordProcessor, ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExportResult
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    MetricExportResult,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import SpanExportResult

from .batching import Batcher, BatchLimits
from .folded import FoldedStream
from .request_span import RequestSpan, spans_of
from .unhurried import Unhurried

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.sdk._logs import ReadWriteLogRecord
    from opentelemetry.sdk._logs.export import LogRecordExporter
    from opentelemetry.sdk.metrics.export import MetricExporter, MetricsData
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

    from .folded import FoldedSet
    from .losses import Losses
    from .rejections import Rejections

__all__ = ["LogQueue", "MetricSender", "SpanQueue"]

_log = logging.getLogger(__name__)
_PATIENCE_SECONDS = 5.0
"""For a shutdown that names no deadline."""


class SpanQueue(SpanProcessor):
    """Takes finished spans that are sampled. Ending a span never waits for the collector."""

    def __init__(
        self, exporter: SpanExporter, rejections: Rejections, losses: Losses, limits: BatchLimits
    ) -> None:
        self._exporter = exporter
        self._rejections = rejections
        self._batcher = Batcher[Any](self._export, signal="traces", losses=losses, limits=limits)

    def on_end(self, span: ReadableSpan) -> None:
        """Queue it, with the spans within it."""
        if span.context is not None and span.context.trace_flags.sampled:
            self._batcher.put(span, span.size if isinstance(span, RequestSpan) else 1)

    def close(self, timeout_seconds: float) -> None:
        """Send what waits, and give up after the time."""
        self._batcher.close(timeout_seconds)
        self._exporter.shutdown()

    def shutdown(self) -> None:
        """As :meth:`close`, for the SDK."""
        self.close(_PATIENCE_SECONDS)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 - the SDK's signature
        """Send what waits, in the calling thread."""
        self._batcher.flush()
        return True

    def _export(self, batch: Sequence[ReadableSpan]) -> bool:
        spans = [each for span in batch for each in spans_of(span)]
        sent = self._exporter.export(Unhurried(spans, self._batcher.is_urgent))
        rejected, words = self._rejections.take()
        if sent is not SpanExportResult.SUCCESS:
            return False
        self._batcher.lose("rejected", rejected, words)
        return True


class LogQueue(LogRecordProcessor):
    """Takes lines of the log; what makes records of them is called when they are sent."""

    def __init__(
        self,
        exporter: LogRecordExporter,
        rejections: Rejections,
        losses: Losses,
        limits: BatchLimits,
    ) -> None:
        self._exporter = exporter
        self._rejections = rejections
        self._batcher = Batcher[Any](self._export, signal="logs", losses=losses, limits=limits)
        self._batch: list[ReadableLogRecord] = []
        """What is to be sent now."""

    def put(self, emit: Callable[[], None]) -> None:
        """Queue a line. Any thread.

        Args:
            emit: Has the provider of this processor emit one record. Called in the thread that sends.
        """
        self._batcher.put(emit)

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        """Take a record for the batch. For the thread that sends it."""
        self._batch.append(
            ReadableLogRecord(
                log_record=log_record.log_record,
                resource=log_record.resource or Resource.get_empty(),
                instrumentation_scope=log_record.instrumentation_scope,
                limits=log_record.limits,
            )
        )

    def close(self, timeout_seconds: float) -> None:
        """Send what waits, and give up after the time."""
        self._batcher.close(timeout_seconds)
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def shutdown(self) -> None:
        """As :meth:`close`, for the SDK."""
        self.close(_PATIENCE_SECONDS)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 - the SDK's signature
        """Send what waits, in the calling thread."""
        self._batcher.flush()
        return True

    def _export(self, lines: Sequence[Callable[[], None]]) -> bool:
        self._batch = []
        for emit in Unhurried(lines, self._batcher.is_urgent):
            emit()
        records, self._batch = self._batch, []
        if records:
            sent = self._exporter.export(Unhurried(records, self._batcher.is_urgent))
            rejected, words = self._rejections.take()
            if sent is not LogRecordExportResult.SUCCESS:
                return False
            self._batcher.lose("rejected", min(rejected, len(records)), words)
        self._batcher.lose("export_failed", len(lines) - len(records))
        return True


class MetricSender(PeriodicExportingMetricReader):
    """Sends the metrics each ``OTEL_METRIC_EXPORT_INTERVAL`` ms, folded histograms included."""

    def __init__(
        self,
        exporter: MetricExporter,
        rejections: Rejections,
        folded: FoldedSet,
        losses: Losses,
        *,
        delta: bool,
        cardinality_limits: Mapping[type, int],
    ) -> None:
        """Begin; the first collection comes after one interval."""
        temporality = AggregationTemporality.DELTA if delta else AggregationTemporality.CUMULATIVE
        self._folded = FoldedStream(folded, temporality, exponential=folded.exponential)
        self._losses = losses
        self._target = exporter
        self._rejections = rejections
        self._started_ns = time.time_ns()
        self._sending = threading.Lock()
        self._counting = threading.Lock()
        self._in_flight = 0
        """Data points that are being sent."""
        self._closing = self._given_up = False
        self._is_last = False
        """Whether those that are being sent were collected at the end."""
        super().__init__(exporter, cardinality_limits=dict(cardinality_limits))

    def close(self, timeout_seconds: float) -> None:
        """Send once more; what is not sent after the time is lost and counted."""
        self._closing = True
        self.shutdown(timeout_millis=timeout_seconds * 1e3)
        with self._counting:
            self._given_up = True
            self._losses.add("metrics", "shutdown", self._in_flight)
            if self._in_flight and not self._is_last:
                self._losses.lose_uncounted()  # what would have been collected now

    def _receive_metrics(
        self,
        metrics_data: MetricsData,
        timeout_millis: float = 10_000,
        **_: Any,  # noqa: ANN401 - the SDK's signature
    ) -> None:
        with self._sending:
            data = self._folded.append_to(
                metrics_data, started_ns=self._started_ns, now_ns=time.time_ns()
            )
            points = _points(data)
            with self._counting:
                if self._given_up:
                    return
                self._in_flight, self._is_last = points, self._closing
            try:
                sent = self._target.export(data, timeout_millis=timeout_millis)
            except Exception:  # noqa: BLE001 - a thread's border: an exporter may raise anything
                _log.debug("an exporter raised", exc_info=True)
                sent = MetricExportResult.FAILURE
            rejected, words = self._rejections.take()
            with self._counting:
                self._in_flight = 0
                reason, lost = "rejected", min(rejected, points)
                if sent is not MetricExportResult.SUCCESS:
                    reason, lost = "export_failed", points
                if not self._given_up:
                    self._losses.add("metrics", reason, lost, words)


def _points(data: MetricsData) -> int:
    return sum(
        len(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    )
