"""Folded histograms: the buckets are those that the SDK would have counted into."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    InMemoryMetricReader,
    MetricsData,
)

from mlx_pharos.telemetry.catalog import BY_NAME
from mlx_pharos.telemetry.folded import FoldedHistogram, FoldedSet, FoldedStream

if TYPE_CHECKING:
    from collections.abc import Sequence

INSTRUMENT = BY_NAME["pharos.inter_token.duration"]
VALUES = st.lists(st.floats(min_value=0, max_value=1e5, allow_subnormal=False), max_size=50)


def _collected() -> MetricsData:
    """Return what an SDK with one instrument collects, for the folded ones to join."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    provider.get_meter("t").create_counter("c").add(1)
    data = reader.get_metrics_data()
    assert data is not None
    return data


def _point(stream: FoldedStream, now_ns: int = 2) -> Any:
    data = stream.append_to(_collected(), started_ns=1, now_ns=now_ns)
    metrics = data.resource_metrics[0].scope_metrics[0].metrics
    (metric,) = [each for each in metrics if each.name == INSTRUMENT.name]
    return metric.data.data_points[0]


def _folded(values: Sequence[float], *, exponential: bool) -> Any:
    folded = FoldedSet()
    folded.exponential = exponential
    folded.add(INSTRUMENT).fold_all(values)
    stream = FoldedStream(folded, AggregationTemporality.CUMULATIVE, exponential=exponential)
    return _point(stream)


@given(VALUES)
@example([0.0, 0.001, 0.0025, 5.0, 5.1])
def test_explicit_buckets_are_the_sdks(values: list[float]) -> None:
    """Counts and sum are those of the SDK's own histogram with the same bounds."""
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader], shutdown_on_exit=False).get_meter("t")
    histogram = meter.create_histogram("h", explicit_bucket_boundaries_advisory=INSTRUMENT.buckets)
    for value in values:
        histogram.record(value)
    data = reader.get_metrics_data()
    found = _folded(values, exponential=False)
    if data is None:
        assert 0 == found.count
        return
    metric = data.resource_metrics[0].scope_metrics[0].metrics[0]
    expected: Any = metric.data.data_points[0]
    assert list(expected.bucket_counts) == list(found.bucket_counts)
    assert expected.count == found.count
    assert math.isclose(expected.sum, found.sum, rel_tol=1e-9, abs_tol=1e-9)


@given(VALUES)
@example([1.0, 2.0, 4.0, 0.5, 1e-9, 1e5])
def test_every_value_is_in_its_exponential_bucket(values: list[float]) -> None:
    """Each value lies within the bounds of the bucket that counts it, and none is lost."""
    whole = _folded(values, exponential=True)
    assert len(values) == whole.count == whole.zero_count + sum(whole.positive.bucket_counts)
    base = 2 ** (2**-whole.scale)
    for value in values:
        if value <= 1e-7:  # in the zeros, or in the outermost bucket
            continue
        place = _folded([value], exponential=True).positive.offset
        assert base**place * (1 - 1e-9) <= value <= base ** (place + 1) * (1 + 1e-9)


def test_deltas_add_up() -> None:
    """With delta temporality each collection has what came since, and begins where the last ended."""
    folded = FoldedSet()
    folded.exponential = True
    histogram = folded.add(INSTRUMENT)
    stream = FoldedStream(folded, AggregationTemporality.DELTA, exponential=True)
    seen = []
    for now, times in ((10, 2), (20, 0), (30, 5)):
        histogram.fold(0.1, times)
        point = _point(stream, now)
        seen.append((point.count, sum(point.positive.bucket_counts), point.start_time_unix_nano))
    assert [(2, 2, 1), (0, 0, 10), (5, 5, 20)] == seen


def test_no_value_is_lost_between_threads() -> None:
    """Eight threads that fold at once are counted in full."""
    histogram = FoldedHistogram(INSTRUMENT, scale=4)

    def fold() -> None:
        for _ in range(500):
            histogram.fold(0.02)
            histogram.fold_all([0.2, 0.3])

    threads = [threading.Thread(target=fold) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tally = histogram.read()
    assert 12_000 == sum(tally.counts) == sum(tally.fine.values())
