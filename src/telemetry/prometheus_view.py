"""``GET /metrics``: the process's instruments for Prometheus.

A metric reader of its own for what the SDK knows; the histograms, which it does
not, are read where they are counted, and those in which nothing was counted
since the last scrape are not read again. The exporter package's reader drops
exemplars, mixes up concurrent scrapes, and needs prometheus_client. Names come
from the catalog, and are those that Prometheus makes of the same instruments
when it gets them by OTLP.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics.export import MetricReader, NumberDataPoint, Sum

from .catalog import BY_NAME
from .exposition import Family, HistogramSample, Mark, Sample, choose_format, write
from .vllm import add_aliases

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.sdk.metrics.export import Metric, MetricsData

    from .folded import FoldedHistogram, FoldedSet

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
    ) -> None:
        """Begin to count.

        Args:
            folded: The histograms.
            cardinality_limits: Series per instrument at most, by its class.
            vllm_model: The served name, to add the names that vLLM's boards use; empty
                leaves them out.
        """
        super().__init__(cardinality_limits=dict(cardinality_limits or {}))
        self._folded = folded
        self._vllm_model = vllm_model
        self._lock = threading.Lock()
        """Held for one collection, so that each scrape sees its own."""
        self._collected: list[MetricsData] = []
        """One, or none where there is nothing to collect."""
        self._seen: dict[FoldedHistogram, tuple[int, HistogramSample]] = {}
        """Each histogram as it was when it was read last, and its ``folds`` before that."""

    def scrape(self, accept: str = "") -> tuple[str, str]:
        """Return the exposition and its content type.

        Args:
            accept: The request's header.
        """
        form = choose_format(accept)
        with self._lock:
            self._collected.clear()
            self.collect()
            families = [family for data in self._collected for family in _families(data)]
            if families:  # the SDK may be switched off
                families += self._histograms()
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
        self._collected.append(metrics_data)

    def _histograms(self) -> list[Family]:
        """Return the families of all histograms. The lock is held."""
        families: dict[str, Family] = {}
        for histogram in self._folded.histograms:
            instrument = histogram.instrument
            family = families.get(instrument.name)
            if family is None:
                name, unit = instrument.prometheus_family, instrument.prometheus_unit
                family = Family(name, "histogram", instrument.description, unit)
                families[instrument.name] = family
            family.samples.append(self._sample(histogram))
        return list(families.values())

    def _sample(self, histogram: FoldedHistogram) -> HistogramSample:
        folds = histogram.folds  # before it is read: what comes meanwhile is read next time
        seen = self._seen.get(histogram)
        if seen is None or seen[0] != folds:
            tally = histogram.read()
            seen = self._seen[histogram] = (
                folds,
                HistogramSample(
                    _labels(histogram.attributes),
                    histogram.instrument.buckets,
                    tally.counts,
                    tally.total,
                    {
                        place: Mark(span.trace_id, span.span_id, value, at_ns / 1e9)
                        for place, (value, at_ns, span) in histogram.examples().items()
                    },
                ),
            )
        return seen[1]


def _families(data: MetricsData) -> Iterator[Family]:
    for resource in data.resource_metrics:
        labels = _labels(resource.resource.attributes)
        yield Family("target", "info", "What the resource is.", "", [Sample(labels, 1)])
        for scope in resource.scope_metrics:
            yield from map(_family, scope.metrics)


def _family(metric: Metric) -> Family:
    """Return the family of an instrument; of one that is not ours by the same rules."""
    instrument = BY_NAME.get(metric.name)
    if instrument is not None:
        name, unit = instrument.prometheus_family, instrument.prometheus_unit
    else:
        name, unit = metric.name.replace(".", "_"), _UNITS.get(metric.unit or "", "")
        name = name if not unit or name.endswith(f"_{unit}") else f"{name}_{unit}"
    only_grows = isinstance(metric.data, Sum) and metric.data.is_monotonic
    family = Family(name, "counter" if only_grows else "gauge", metric.description or "", unit)
    for point in metric.data.data_points:
        if isinstance(point, NumberDataPoint):
            family.samples.append(Sample(_labels(point.attributes or {}), point.value))
    return family


def _labels(attributes: Mapping[str, Any]) -> dict[str, str]:
    return {name.replace(".", "_"): _text(value) for name, value in attributes.items()}


def _text(value: Any) -> str:  # noqa: ANN401 - whatever an attribute may be
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
