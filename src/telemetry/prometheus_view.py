"""``GET /metrics``: the process's instruments for Prometheus.

A metric reader of its own, with explicit buckets. The exporter package's reader
drops exemplars, mixes up concurrent scrapes, and needs prometheus_client.
Names come from the catalog, and are those that Prometheus makes of the same
instruments when it gets them by OTLP.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    MetricReader,
    NumberDataPoint,
    Sum,
)

from .catalog import BY_NAME
from .exposition import Family, HistogramSample, Mark, Sample, choose_format, write
from .folded import FoldedStream
from .vllm import add_aliases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from opentelemetry.sdk.metrics.export import Metric, MetricsData

    from .folded import FoldedSet

__all__ = ["PrometheusView"]

_UNITS = {"s": "seconds", "By": "bytes", "1": "ratio"}


class PrometheusView(MetricReader):
    """Collects on demand and writes the exposition. Safe under concurrent scrapes.

    It belongs to the MeterProvider that it is passed to.
    """

    def __init__(
        self,
        folded: FoldedSet,
        *,
        cardinality_limits: Mapping[type, int] | None = None,
        vllm_model: str = "",
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Begin to count.

        Args:
            folded: The histograms that the SDK does not know.
            cardinality_limits: Series per instrument at most, by its class.
            vllm_model: The served name, to add the names that vLLM's boards use; empty
                leaves them out.
            clock_ns: Nanoseconds since 1970.
        """
        super().__init__(cardinality_limits=dict(cardinality_limits or {}))
        self._folded = FoldedStream(folded, AggregationTemporality.CUMULATIVE)
        self._vllm_model = vllm_model
        self._clock_ns = clock_ns
        self._started_ns = clock_ns()
        self._lock = threading.Lock()
        """Held for one collection, so that each scrape sees its own."""
        self._collected: list[MetricsData] = []
        """One, or none where there is nothing to collect."""
        self._marks: dict[tuple[str, str], dict[int, Mark]] = {}
        """The last exemplar of each bucket: the SDK forgets it with the first scrape."""

    def scrape(self, accept: str = "") -> tuple[str, str]:
        """Return the exposition and its content type.

        Args:
            accept: The request's header.
        """
        form = choose_format(accept)
        with self._lock:
            self._collected.clear()
            self.collect()
            families = [family for data in self._collected for family in self._families(data)]
        if self._vllm_model:
            families += add_aliases(families, self._vllm_model)
        return write(families, form), form.content_type

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:  # noqa: ANN401 - SDK's
        """Do nothing: there is nothing to stop, and the figures may still be read."""

    def _receive_metrics(
        self,
        metrics_data: MetricsData,
        timeout_millis: float = 10_000,  # noqa: ARG002 - the SDK's signature
        **_: Any,  # noqa: ANN401
    ) -> None:
        self._collected.append(
            self._folded.append_to(
                metrics_data, started_ns=self._started_ns, now_ns=self._clock_ns()
            )
        )

    def _families(self, data: MetricsData) -> Iterator[Family]:
        for resource in data.resource_metrics:
            labels = _labels(resource.resource.attributes)
            yield Family("target", "info", "What the resource is.", "", [Sample(labels, 1)])
            for scope in resource.scope_metrics:
                yield from (self._family(metric) for metric in scope.metrics)

    def _family(self, metric: Metric) -> Family:
        family = _empty_family(metric)
        for point in metric.data.data_points:
            labels = _labels(point.attributes or {})
            if isinstance(point, HistogramDataPoint):
                family.samples.append(self._histogram(family.name, labels, point))
            elif isinstance(point, NumberDataPoint):
                family.samples.append(Sample(labels, point.value))
        return family

    def _histogram(
        self, name: str, labels: dict[str, str], point: HistogramDataPoint
    ) -> HistogramSample:
        bounds = tuple(point.explicit_bounds)
        marks = self._marks.setdefault((name, str(labels)), {})
        for found in point.exemplars:
            if found.trace_id and found.span_id:
                marks[bisect_left(bounds, found.value)] = Mark(
                    found.trace_id, found.span_id, found.value, found.time_unix_nano / 1e9
                )
        counts = tuple(point.bucket_counts)
        return HistogramSample(labels, bounds, counts, point.sum, dict(marks))


def _empty_family(metric: Metric) -> Family:
    """Return the family of an instrument; of one that is not ours by the same rules."""
    instrument = BY_NAME.get(metric.name)
    if instrument is not None:
        name, unit = instrument.prometheus_family, instrument.prometheus_unit
    else:
        name, unit = metric.name.replace(".", "_"), _UNITS.get(metric.unit or "", "")
        name = name if not unit or name.endswith(f"_{unit}") else f"{name}_{unit}"
    text = metric.description or ""
    if isinstance(metric.data, Histogram):
        return Family(name, "histogram", text, unit)
    if isinstance(metric.data, Sum) and metric.data.is_monotonic:
        return Family(name, "counter", text, unit)
    return Family(name, "gauge", text, unit)


def _labels(attributes: Mapping[str, Any]) -> dict[str, str]:
    return {name.replace(".", "_"): _text(value) for name, value in attributes.items()}


def _text(value: Any) -> str:  # noqa: ANN401 - whatever an attribute may be
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
