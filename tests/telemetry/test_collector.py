"""``MetricsCollector``: the names that users know, over the same instruments."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from mlx_pharos.telemetry.collector import MetricsCollector, make_window
from mlx_pharos.telemetry.instruments import Instruments
from mlx_pharos.telemetry.memory import ResidentMemory


def test_threads_lose_no_hit() -> None:
    """Ten threads with a hundred hits each are a thousand hits."""
    collector = MetricsCollector()

    def hit(_: int) -> None:
        for _ in range(100):
            collector.record_cache_hit()

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(hit, range(10)))
    collector.record_cache_miss()
    stats = collector.get_cache_stats()
    assert (1000, 1) == (stats["hits"], stats["misses"])
    assert stats["hit_rate"] == pytest.approx(1000 / 1001)


@pytest.mark.parametrize("latency", [-0.001, -math.inf, math.nan])
def test_a_negative_latency_is_a_mistake(latency: float) -> None:
    """It raises, and nothing is recorded."""
    collector = MetricsCollector()
    with pytest.raises(ValueError, match="latency"):
        collector.record_latency(latency)
    assert 0 == collector.get_latency_stats()["samples"]


def test_percentiles_of_a_hundred() -> None:
    """Latencies from 1 to 100 ms have the percentiles that they have."""
    collector = MetricsCollector()
    for value in range(1, 101):
        collector.record_latency(float(value))
    stats = collector.get_latency_stats()
    assert 100 == stats["samples"]
    for share in (50, 95, 99):
        assert stats[f"p{share}"] == pytest.approx(share, rel=0.01)


def test_requests_are_counted() -> None:
    """Each is in the total, and the rate is theirs over the uptime."""
    collector = MetricsCollector()
    for _ in range(100):
        collector.record_throughput()
    stats = collector.get_throughput_stats()
    assert (100, 300) == (stats["total_requests"], stats["window_seconds"])
    assert stats["requests_per_second"] > 0


def test_memory_is_measured() -> None:
    """Current, peak and initial are resident sets of this process, and growth is their difference."""
    collector = MetricsCollector()
    collector.record_memory_usage()
    stats = collector.get_memory_stats()
    assert 10 < stats["initial_mb"] <= stats["peak_mb"]
    assert stats["current_mb"] <= stats["peak_mb"]
    assert stats["growth_mb"] == pytest.approx(stats["current_mb"] - stats["initial_mb"])


def test_switches() -> None:
    """What is switched off is not recorded, and says so."""
    collector = MetricsCollector(enable_latency_tracking=False, enable_memory_tracking=False)
    collector.record_latency(5.0)
    collector.record_memory_usage()
    assert 0 == collector.get_latency_stats()["samples"]
    assert {"unavailable"} == set(collector.get_memory_stats().values())


def test_reset_begins_again() -> None:
    """After a reset the reports are at zero; what is exported never falls."""
    reader, window = InMemoryMetricReader(), make_window()
    provider = MeterProvider(metric_readers=[reader, window], shutdown_on_exit=False)
    collector = MetricsCollector(Instruments(provider.get_meter("test")), window)
    collector.record_cache_hit(3)
    collector.record_latency(5.0)
    collector.record_throughput()
    collector.reset()
    answer = collector.export_metrics_json()
    assert (0, 0, 0) == (
        answer["cache"]["hits"],
        answer["latency"]["samples"],
        answer["throughput"]["total_requests"],
    )
    collector.record_cache_hit()
    assert 1 == collector.get_cache_stats()["hits"]
    data = reader.get_metrics_data()
    assert data is not None
    exported = {
        metric.name: sum(getattr(point, "value", 0) for point in metric.data.data_points)
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
    }
    assert 4 == exported["pharos.prompt_cache.lookups"]
    assert 1 == exported["pharos.requests.finished"]


def test_both_exports_say_the_same() -> None:
    """The text has the figures of the JSON, line by line."""
    collector = MetricsCollector()
    collector.record_cache_hit(7)
    collector.record_latency(12.0)
    text = collector.export_metrics_prometheus()
    values = dict(line.split(" ") for line in text.splitlines() if not line.startswith("#"))
    answer = collector.export_metrics_json()
    assert float(values["mlx_server_cache_hits"]) == answer["cache"]["hits"] == 7
    assert float(values["mlx_server_latency_p50_ms"]) == answer["latency"]["p50_ms"]


def test_a_process_that_ended_is_left_out() -> None:
    """Memory is that of the processes that are there; of none, it is unknown."""
    gone = ResidentMemory(lambda: {"engine": 2**22 + 12345})
    assert (None, {}) == (gone.total(), gone.read())
    both = ResidentMemory(lambda: {"server": os.getpid(), "engine": 2**22 + 12345})
    assert {"server"} == both.read().keys()
