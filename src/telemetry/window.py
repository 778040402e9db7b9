"""The last five minutes: what the legacy JSON says of latency and of requests per second.

A metric reader of its own collects delta exponential histograms: each collection
brings what was recorded since the one before. Those deltas are kept in slices
of 10 s. Nothing runs in the background: whoever records says so first
(:meth:`WindowReader.advance`), and the first one past a slice's border closes
the slice; whoever reads closes the one that is open.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics import (
    Counter,
    Histogram,
    ObservableCounter,
    ObservableGauge,
    ObservableUpDownCounter,
    UpDownCounter,
)
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ExponentialHistogramDataPoint,
    MetricReader,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.metrics.view import DropAggregation
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from .folded import FoldedStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .folded import FoldedSet

__all__ = ["SLICE_SECONDS", "WINDOW_SECONDS", "Sketch", "Window", "WindowReader"]

WINDOW_SECONDS = 300
SLICE_SECONDS = 10
_SLICES = WINDOW_SECONDS // SLICE_SECONDS
_SCALE = 7
"""Buckets are 0.54 % wide: no percentile is further off than that."""


class Sketch:
    """A histogram with buckets of equal ratio: bucket ``i`` holds ``base**i < x <= base**(i+1)``.

    Not thread-safe. Its size is bounded by the buckets that were ever filled.
    """

    def __init__(self) -> None:
        self.count = 0
        self._scale = _SCALE
        self._zeros = 0
        self._buckets: dict[int, int] = {}
        self._found: dict[tuple[float, ...], tuple[float, ...]] = {}
        """What was asked for since the last sample came."""

    def add_point(self, point: ExponentialHistogramDataPoint) -> None:
        """Take what one collection brought. All values are zero or above."""
        self._found.clear()
        self._coarsen(point.scale)
        shift = point.scale - self._scale
        for place, count in enumerate(point.positive.bucket_counts, point.positive.offset):
            if count:
                index = place >> shift
                self._buckets[index] = self._buckets.get(index, 0) + count
        self.count += point.count
        self._zeros += point.zero_count

    def merge(self, other: Sketch) -> None:
        """Take everything that another sketch holds."""
        self._found.clear()
        self._coarsen(other._scale)
        shift = other._scale - self._scale
        for place, count in other._buckets.items():
            index = place >> shift
            self._buckets[index] = self._buckets.get(index, 0) + count
        self.count += other.count
        self._zeros += other._zeros

    def percentiles(self, *shares: float) -> tuple[float, ...]:
        """Return the value at each share (0 to 1) of the samples in order; zeros where none are.

        The value is that of the sample with rank ``ceil(share * count)``, found
        by interpolation within its bucket.
        """
        if shares not in self._found:
            self._found[shares] = self._percentiles(shares)
        return self._found[shares]

    def copy(self) -> Sketch:
        """Return another one that holds the same."""
        other = Sketch()
        other.count, other._scale, other._zeros = self.count, self._scale, self._zeros
        other._buckets = self._buckets.copy()
        return other

    def _percentiles(self, shares: tuple[float, ...]) -> tuple[float, ...]:
        filled = sorted(self._buckets.items())
        ranks = [*accumulate((count for _, count in filled), initial=self._zeros)]

        def at(rank: int) -> float:
            if not self.count or rank <= self._zeros:
                return 0.0
            found = bisect_left(ranks, rank) - 1
            index, count = filled[found]
            place = index + (rank - ranks[found] - 0.5) / count
            value: float = 2.0 ** (place / 2.0**self._scale)
            return value

        return tuple(at(max(1, math.ceil(share * self.count))) for share in shares)

    def _coarsen(self, scale: int) -> None:
        shift = self._scale - scale
        if shift <= 0:
            return
        coarse: dict[int, int] = {}
        for place, count in self._buckets.items():
            coarse[place >> shift] = coarse.get(place >> shift, 0) + count
        self._buckets = coarse
        self._scale = scale


_INSTRUMENTS = (
    Counter,
    Histogram,
    ObservableCounter,
    ObservableGauge,
    ObservableUpDownCounter,
    UpDownCounter,
)
_EMPTY = MetricsData(
    [
        ResourceMetrics(
            Resource.get_empty(), [ScopeMetrics(InstrumentationScope("window"), [], "")], ""
        )
    ]
)
"""What the SDK brings: nothing."""


@dataclass(slots=True)
class _Slice:
    """What was recorded in one stretch of 10 s."""

    index: int
    sketch: Sketch = field(default_factory=Sketch)
    count: int = 0


@dataclass(frozen=True, slots=True)
class Window:
    """What a poll learns."""

    latencies: Sketch
    """Seconds, of the window."""
    count: int
    """What was counted within the window."""
    total: int
    """What was counted since the start."""
    seconds: float
    """The stretch that the window really covers: up to 300 s, less in the first minutes."""
    uptime: float
    """Seconds since the start."""

    @property
    def per_second(self) -> float:
        """What was counted per second of the window."""
        return self.count / self.seconds if self.seconds > 0 else 0.0


class WindowReader(MetricReader):
    """Keeps one histogram's last 300 s, and the rate and total of what is counted.

    Safe from any thread. The histogram is a folded one, which the SDK does not know;
    so it collects from :meth:`follow`'s set alone, and a poll asks for no other figure.
    """

    def __init__(
        self,
        *,
        histogram: str,
        counts: Callable[[Mapping[str, Any]], bool] = lambda _: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch an instrument.

        Args:
            histogram: Its name; it counts seconds.
            counts: Which points of the histogram count, by their attributes.
            clock: Seconds, monotonic.
        """
        super().__init__(preferred_aggregation=dict.fromkeys(_INSTRUMENTS, DropAggregation()))
        self._histogram = histogram
        self._stream: FoldedStream | None = None
        self._counts = counts
        self._clock = clock
        self._started = clock()
        self._total = 0
        self._lock = threading.RLock()
        """Held while one thread collects, and calls itself back."""
        self._closed: Sketch | None = None
        """All slices but the open one; None where it has to be made again."""
        self._merged: Sketch | None = None
        """All slices, likewise. Once handed out it does not change."""
        self._slices: deque[_Slice] = deque([_Slice(self._index(self._started))])

    def follow(self, folded: FoldedSet) -> None:
        """Read the histogram from ``folded``. To be called before anything is recorded."""
        folded.refine(self._histogram, _SCALE)
        self._stream = FoldedStream(
            folded, AggregationTemporality.DELTA, exponential=True, only=self._histogram
        )

    def advance(self) -> None:
        """Close the open slice if its time is over. To be called just before recording."""
        if self._index(self._clock()) != self._slices[-1].index:
            with self._lock:
                self._rotate()

    def count(self) -> None:
        """Count one for the rate and the total."""
        with self._lock:
            self._rotate()
            self._slices[-1].count += 1
            self._total += 1

    def read(self) -> Window:
        """Return the window as it is now: one collection and one merge."""
        with self._lock:
            self._rotate()
            self._gather()
            now = self._clock()
            uptime = now - self._started
            oldest = (self._slices[-1].index - _SLICES + 1) * SLICE_SECONDS
            return Window(
                latencies=self._all_slices(),
                count=sum(each.count for each in self._slices),
                total=self._total,
                seconds=min(uptime, now - oldest),
                uptime=uptime,
            )

    def reset(self) -> None:
        """Forget everything, as if the process had just started."""
        with self._lock:
            self._rotate()
            self._gather()
            self._started = self._clock()
            self._total = 0
            self._slices = deque([_Slice(self._index(self._started))])
            self._closed = self._merged = None

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:  # noqa: ANN401 - SDK's
        """Do nothing: there is nothing to stop, and the figures may still be read."""

    def _rotate(self) -> None:
        """Begin a new slice where the open one's time is over. The lock is held."""
        index = self._index(self._clock())
        if index == self._slices[-1].index:
            return
        self._gather()  # what waits was recorded in the slice that ends now
        self._slices.append(_Slice(index))
        while self._slices[0].index <= index - _SLICES:
            self._slices.popleft()
        self._closed = self._merged = None

    def _all_slices(self) -> Sketch:
        """Return the sum of all slices. A poll that finds nothing new merges nothing."""
        if self._merged is None:
            self._merged = self._closed_slices().copy()
            self._merged.merge(self._slices[-1].sketch)
        return self._merged

    def _closed_slices(self) -> Sketch:
        """Return the sum of the slices whose time is over, which a slice's time does not change."""
        if self._closed is None:
            self._closed = Sketch()
            for each in self._slices:
                if each is not self._slices[-1]:
                    self._closed.merge(each.sketch)
        return self._closed

    def _gather(self) -> None:
        """Take what was recorded since the last time. The lock is held."""
        if self._stream is not None:
            self._receive_metrics(self._stream.append_to(_EMPTY, started_ns=0, now_ns=0))

    def _receive_metrics(
        self,
        metrics_data: MetricsData,
        timeout_millis: float = 10_000,  # noqa: ARG002 - the SDK's signature
        **_: Any,  # noqa: ANN401
    ) -> None:
        with self._lock:
            current = self._slices[-1]
            for point in _points(metrics_data):
                if isinstance(point, ExponentialHistogramDataPoint) and self._keeps(point):
                    current.sketch.add_point(point)
                    self._merged = None

    def _keeps(self, point: ExponentialHistogramDataPoint) -> bool:
        return self._counts(point.attributes or {})

    def _index(self, now: float) -> int:
        return int(now // SLICE_SECONDS)


def _points(data: MetricsData) -> Iterator[Any]:
    for resource in data.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                yield from metric.data.data_points
