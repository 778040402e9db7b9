"""``GET /metrics``: the process's instruments for Prometheus.

All numbers are read where they are counted, and the histograms in which nothing
was counted since the last scrape are not read again: a collection by the SDK
takes three times as long, and the exporter package's reader drops exemplars,
mixes up concurrent scrapes, and needs prometheus_client. Names come from the
catalog, and are those that Prometheus makes of the same instruments when it
gets them by OTLP.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from .catalog import BY_NAME
from .exposition import Family, HistogramSample, Mark, Sample, choose_format, write
from .vllm import add_aliases

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .catalog import Instrument
    from .folded import FoldedHistogram
    from .instruments import Instruments

__all__ = ["PrometheusView"]

_NOT_IN_LABELS: Final = re.compile(r"[^a-zA-Z0-9]+")


class PrometheusView:
    """Reads on demand and writes the exposition. Safe under concurrent scrapes."""

    def __init__(
        self,
        instruments: Instruments,
        resource: Mapping[str, Any],
        *,
        vllm_model: str = "",
        enabled: bool = True,
    ) -> None:
        """Show ``instruments``.

        Args:
            instruments: Of the process.
            resource: The attributes of what the process is.
            vllm_model: The served name, to add the names that vLLM's boards use; empty
                leaves them out.
            enabled: Whether anything is shown.
        """
        self._instruments = instruments
        self._resource = _resource_labels(resource)
        self._vllm_model = vllm_model
        self._enabled = enabled
        self._seen: dict[FoldedHistogram, tuple[int, HistogramSample]] = {}
        """Each histogram as it was when it was read last, and its ``folds`` before that."""

    def scrape(self, accept: str = "") -> tuple[str, str]:
        """Return the exposition and its content type.

        Args:
            accept: The request's header.
        """
        form = choose_format(accept)
        families = list(self._families()) if self._enabled else []
        if self._vllm_model:
            families += add_aliases(families, self._vllm_model)
        return write(families, form), form.content_type

    def _families(self) -> Iterator[Family]:
        """Yield what was measured, in the catalog's order."""
        target = Sample(self._resource, 1)
        yield Family("target", "info", "What the resource is.", "", [target])
        histograms: dict[str, list[Sample | HistogramSample]] = {}
        for histogram in self._instruments.folded.histograms:
            of_name = histograms.setdefault(histogram.instrument.name, [])
            of_name.append(self._sample(histogram))
        for name, instrument in BY_NAME.items():
            samples = histograms.get(name) or self._samples(name)
            if samples:
                yield _family(instrument, samples)

    def _samples(self, name: str) -> list[Sample | HistogramSample]:
        return [
            Sample(_labels(each.attributes), each.value)
            for each in self._instruments.readings(name)
        ]

    def _sample(self, histogram: FoldedHistogram) -> HistogramSample:
        """Return a histogram as it is now. Several threads may do the same at once."""
        folds = histogram.folds  # before it is read: what comes meanwhile is read next time
        seen = self._seen.get(histogram)
        if seen is None or seen[0] != folds:
            tally = histogram.read()
            sample = HistogramSample(
                _labels(histogram.attributes),
                histogram.instrument.buckets,
                tally.counts,
                tally.total,
                {
                    place: Mark(span.trace_id, span.span_id, value, at_ns / 1e9)
                    for place, (value, at_ns, span) in histogram.examples().items()
                },
            )
            seen = self._seen[histogram] = (folds, sample)
        return seen[1]


def _family(instrument: Instrument, samples: list[Sample | HistogramSample]) -> Family:
    family = Family(
        instrument.prometheus_family,
        "counter" if instrument.is_total else "gauge",
        instrument.description,
        instrument.prometheus_unit,
        samples,
    )
    if instrument.is_histogram:
        family.kind = "histogram"
    return family


def _resource_labels(resource: Mapping[str, Any]) -> dict[str, str]:
    """Return labels for attributes that anybody may have named.

    OpenTelemetry's rules for Prometheus: what no label's name may have is ``_``, several of those
    are one, and the values of names that become the same are joined in the order of the names.
    """
    values: dict[str, list[str]] = {}
    for name in sorted(resource):
        values.setdefault(_label_name(name), []).append(_text(resource[name]))
    return {label: ";".join(values[label]) for label in dict.fromkeys(map(_label_name, resource))}


def _label_name(name: str) -> str:
    label = _NOT_IN_LABELS.sub("_", name) or "_"
    # As Prometheus does where it gets the same by OTLP.
    return f"key_{label}" if label[0].isdigit() else label


def _labels(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Return labels for attributes of the catalog, whose names have dots at worst."""
    return {name.replace(".", "_"): _text(value) for name, value in attributes.items()}


def _text(value: Any) -> str:  # noqa: ANN401 - whatever an attribute may be
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
