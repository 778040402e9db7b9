"""Histograms of the token path: plain integers, turned into data points at collection.

Recording through OpenTelemetry costs 5 to 14 µs per value and set of readers;
counting into a list costs a tenth of one. So whoever reads the engine's
messages folds a whole step in here with one call. The view for Prometheus reads
the catalog's buckets, and the readers that send append the outcome to what the
SDK collected, in exponential buckets for OTLP.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Buckets,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.trace import SpanContext

    from .catalog import Instrument

__all__ = ["FoldedHistogram", "FoldedSet", "FoldedStream"]


_SCALE = 4
"""Of the exponential buckets that are sent: each is 4.4 % wider than the one before."""
_OCTAVES = 24
"""Buckets lie from 60 ns, or a fraction of a token, to half a year, or 16 million tokens; what lies
beyond is in the outermost. That bounds what a histogram can hold."""


@lru_cache
def _fine_buckets(scale: int) -> tuple[tuple[float, ...], int]:
    """Return the upper bounds of a scale's exponential buckets but the last, and the first's index.

    As OpenTelemetry has them: bucket i ends with 2 ** ((i + 1) / 2 ** scale). A search in them takes a
    third of what a logarithm does.
    """
    per_octave = 2**scale
    first = -_OCTAVES * per_octave
    return tuple(2.0 ** (place / per_octave) for place in range(first + 1, -first)), first


@dataclass(frozen=True, slots=True)
class _Tally:
    """What was counted up to one moment."""

    counts: tuple[int, ...]
    total: float
    fine: Mapping[int, int]
    """Counts of the exponential buckets by index; empty where nobody wants them."""
    zeros: int

    def since(self, earlier: _Tally) -> _Tally:
        counts = zip(self.counts, earlier.counts, strict=True)
        fine = {
            place: gained
            for place, count in self.fine.items()
            if (gained := count - earlier.fine.get(place, 0))
        }
        return _Tally(
            tuple(now - then for now, then in counts),
            self.total - earlier.total,
            fine,
            self.zeros - earlier.zeros,
        )

    def buckets(self, shift: int) -> Buckets:
        """Return the exponential buckets from the first to the last that is filled.

        Args:
            shift: How many times two of them become one.
        """
        if not self.fine:
            return Buckets(0, [0])
        first, last = min(self.fine) >> shift, max(self.fine) >> shift
        counts = [0] * (last - first + 1)
        for place, count in self.fine.items():
            counts[(place >> shift) - first] += count
        return Buckets(first, counts)


class FoldedHistogram:
    """Counts of one series. Any thread may fold and read; the lock is held for a few lines."""

    def __init__(
        self,
        instrument: Instrument,
        attributes: Mapping[str, str] | None = None,
        *,
        scale: int | None = None,
    ) -> None:
        """Count nothing yet; in exponential buckets too where they have a scale."""
        self.instrument = instrument
        self.attributes = dict(attributes or {})
        self._bounds = instrument.buckets
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0
        self.folds = 0
        """How often something was counted. Read without the lock, to see whether there is news."""
        self.scale = scale
        self._fine_bounds, self._first_fine = _fine_buckets(scale or 0)
        self._fine: dict[int, int] = {}
        self._zeros = 0
        self._marks: dict[int, tuple[float, int, SpanContext]] = {}
        """See :meth:`examples`."""
        self._lock = threading.Lock()

    def fold(self, value: float, times: int = 1, mark: SpanContext | None = None) -> None:
        """Count a value, in the unit of the instrument, ``times`` times.

        Args:
            value: In the unit of the instrument.
            times: How often it occurred.
            mark: The span that is an example of it, if it is kept.
        """
        place = bisect_left(self._bounds, value)
        with self._lock:
            self.folds += 1
            self._counts[place] += times
            self._total += value * times
            if self.scale is not None:
                self._fold_fine(value, times)
            if mark is not None and mark.trace_flags.sampled:
                self._marks[place] = (value, time.time_ns(), mark)

    def exemplars(self, since_ns: int) -> list[Exemplar]:
        """Return the last one of each bucket that is no older (ns since 1970)."""
        return [
            Exemplar({}, value, at_ns, span.span_id, span.trace_id)
            for value, at_ns, span in self.examples().values()
            if at_ns >= since_ns
        ]

    def examples(self) -> dict[int, tuple[float, int, SpanContext]]:
        """Return by bucket the last example: its value, when it came (ns since 1970), its span."""
        with self._lock:
            return self._marks.copy()

    def fold_all(self, values: Sequence[float]) -> None:
        """Count several values, such as those of one step."""
        bounds, counts = self._bounds, self._counts
        with self._lock:
            self.folds += 1
            total = self._total
            for value in values:
                counts[bisect_left(bounds, value)] += 1
                total += value
            self._total = total
            if self.scale is not None:
                for value in values:
                    self._fold_fine(value, 1)

    def read(self) -> _Tally:
        """Return what was counted since the start."""
        with self._lock:
            return _Tally(tuple(self._counts), self._total, dict(self._fine), self._zeros)

    def _fold_fine(self, value: float, times: int) -> None:
        if value <= 0.0:
            self._zeros += times
            return
        place = self._first_fine + bisect_left(self._fine_bounds, value)
        self._fine[place] = self._fine.get(place, 0) + times


class FoldedSet:
    """All folded histograms of a process, read by every reader's stream. Safe from any thread."""

    def __init__(self) -> None:
        self.exponential = False
        """Whether exponential buckets are counted too. To be said before the first histogram."""
        self.histograms: tuple[FoldedHistogram, ...] = ()
        self._named: dict[str, tuple[FoldedHistogram, ...]] = {}
        self._scales: dict[str, int] = {}
        self._lock = threading.Lock()

    def refine(self, name: str, scale: int) -> None:
        """Count an instrument in exponential buckets of this scale, whoever else wants them.

        Args:
            name: Of the instrument. To be said before its first histogram.
            scale: At least that of the buckets that are sent.
        """
        assert scale >= _SCALE
        self._scales[name] = scale

    def add(
        self, instrument: Instrument, attributes: Mapping[str, str] | None = None
    ) -> FoldedHistogram:
        """Make a histogram and keep it."""
        scale = self._scales.get(instrument.name, _SCALE if self.exponential else None)
        histogram = FoldedHistogram(instrument, attributes, scale=scale)
        with self._lock:
            self.histograms = (*self.histograms, histogram)
            self._named[instrument.name] = (*self.of(instrument.name), histogram)
        return histogram

    def of(self, name: str) -> tuple[FoldedHistogram, ...]:
        """Return those of one instrument."""
        return self._named.get(name, ())


class FoldedStream:
    """What one reader gets of a set. Used by one collection at a time."""

    def __init__(
        self,
        folded: FoldedSet,
        temporality: AggregationTemporality,
        *,
        exponential: bool = False,
        only: str = "",
    ) -> None:
        """Read from a set.

        Args:
            folded: All histograms.
            temporality: Whether each collection brings all, or what came since the last one.
            exponential: Whether in exponential buckets.
            only: The name of the one instrument to read, with its buckets as fine as they are;
                empty reads all of them.
        """
        self._folded = folded
        self._exponential = exponential
        self._only = only
        self._temporality = temporality
        self._since: dict[FoldedHistogram, tuple[_Tally, int]] = {}
        """Delta alone: what was told, and until when (ns since 1970)."""
        self._folds: dict[FoldedHistogram, int] = {}
        """How many had been counted when a delta was told."""
        self._collected_ns = 0
        """The last collection: an exemplar is told once."""

    def append_to(self, data: MetricsData, *, started_ns: int, now_ns: int) -> MetricsData:
        """Return what the SDK collected together with the folded histograms.

        Args:
            data: Of one collection; its first scope takes the histograms.
            started_ns: When counting began, ns since 1970.
            now_ns: The moment of the collection.
        """
        metrics = self.metrics(started_ns=started_ns, now_ns=now_ns)
        if not metrics or not data.resource_metrics:
            return data
        resource, *resources = data.resource_metrics
        scope, *scopes = resource.scope_metrics
        scope = _with_metrics(scope, metrics)
        return MetricsData([_with_scopes(resource, [scope, *scopes]), *resources])

    def metrics(self, *, started_ns: int, now_ns: int) -> list[Metric]:
        """Return the folded histograms alone."""
        points: dict[Instrument, list[Any]] = {}
        point: Any
        only = self._only
        for histogram in self._folded.of(only) if only else self._folded.histograms:
            if only and not self._has_news(histogram):
                continue
            tally, since_ns = self._gained(histogram, started_ns, now_ns)
            marks = histogram.exemplars(self._collected_ns)
            if self._exponential:
                scale = (histogram.scale or 0) if self._only else _SCALE
                point = _exponential_point(histogram, tally, marks, (since_ns, now_ns), scale)
            else:
                point = _explicit_point(histogram, tally, marks, (since_ns, now_ns))
            points.setdefault(histogram.instrument, []).append(point)
        self._collected_ns = now_ns
        kind = ExponentialHistogram if self._exponential else Histogram
        return [
            Metric(
                name=instrument.name,
                description=instrument.description,
                unit=instrument.unit,
                data=kind(found, self._temporality),
            )
            for instrument, found in points.items()
        ]

    def _has_news(self, histogram: FoldedHistogram) -> bool:
        folds, told = histogram.folds, self._folds.get(histogram, 0)
        self._folds[histogram] = folds
        return folds != told

    def _gained(
        self, histogram: FoldedHistogram, started_ns: int, now_ns: int
    ) -> tuple[_Tally, int]:
        """Return what is to be told, and since when it was counted."""
        tally = histogram.read()
        if self._temporality is AggregationTemporality.DELTA:
            earlier = self._since.get(histogram)
            self._since[histogram] = (tally, now_ns)
            if earlier is not None:
                return tally.since(earlier[0]), earlier[1]
        return tally, started_ns


_UNKNOWN = cast("Any", None)
"""The least and the greatest value are optional in OTLP, and not known here."""


def _explicit_point(
    histogram: FoldedHistogram, tally: _Tally, marks: list[Exemplar], times_ns: tuple[int, int]
) -> HistogramDataPoint:
    return HistogramDataPoint(
        attributes=histogram.attributes,
        start_time_unix_nano=times_ns[0],
        time_unix_nano=times_ns[1],
        count=sum(tally.counts),
        sum=tally.total,
        bucket_counts=tally.counts,
        explicit_bounds=histogram.instrument.buckets,
        min=_UNKNOWN,
        max=_UNKNOWN,
        exemplars=marks,
    )


def _exponential_point(
    histogram: FoldedHistogram,
    tally: _Tally,
    marks: list[Exemplar],
    times_ns: tuple[int, int],
    scale: int,
) -> ExponentialHistogramDataPoint:
    return ExponentialHistogramDataPoint(
        attributes=histogram.attributes,
        start_time_unix_nano=times_ns[0],
        time_unix_nano=times_ns[1],
        count=sum(tally.counts),
        sum=tally.total,
        scale=scale,
        zero_count=tally.zeros,
        positive=tally.buckets((histogram.scale or 0) - scale),
        negative=Buckets(0, [0]),
        flags=0,
        min=_UNKNOWN,
        max=_UNKNOWN,
        exemplars=marks,
    )


def _with_metrics(scope: ScopeMetrics, metrics: list[Metric]) -> ScopeMetrics:
    return replace(scope, metrics=[*scope.metrics, *metrics])


def _with_scopes(resource: ResourceMetrics, scopes: list[ScopeMetrics]) -> ResourceMetrics:
    return replace(resource, scope_metrics=scopes)
