"""The files that change the collector: metrics by OTLP, and sampled traces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.backend import Collector
from support.polling import until
from support.stack import ask, sending, serve_tiny

if TYPE_CHECKING:
    from pathlib import Path

    from support.stack import Stack

pytestmark = pytest.mark.timeout(150)


def test_metrics_by_otlp_have_the_names_of_a_scrape(
    tiny_model: Path, running: Stack, tmp_path: Path
) -> None:
    """A server that pushes shows in Prometheus like one that is scraped, in names and figures.

    With explicit buckets the rules' selectors of buckets find them too.
    """
    collector = Collector.prepare(
        tmp_path / "push",
        "push.yaml",
        jaeger=running.jaeger.otlp,
        victorialogs=running.victorialogs.url,
        prometheus=running.prometheus.url,
    )
    variables = sending(
        collector,
        OTEL_TRACES_EXPORTER="none",
        OTEL_SERVICE_NAME="pushed",
        OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION="explicit_bucket_histogram",
    )
    with collector.program, serve_tiny(tiny_model, variables) as served:
        tokens = sum(ask(served).usage["completion_tokens"] for _ in range(5))
        value = running.prometheus.value
        until(
            lambda: value('sum(pharos_tokens_total{job="pushed",type="output"})'),
            lambda now: now == tokens,
            what="pushed tokens",
        )
        assert value('pharos_kv_usage_ratio{job="pushed"}') >= 0
        assert value('max(process_memory_usage_bytes{job="pushed",process="engine"})') > 1e6
        assert value('sum(pharos_engine_restarts_total{job="pushed"})') == 0
        for metric, bound in (
            ("gen_ai_server_time_to_first_token_seconds", r"5(\\.0)?"),
            ("pharos_inter_token_duration_seconds", "0.2"),
        ):
            counted = value(f'sum({metric}_count{{job="pushed"}})')
            below = value(f'sum({metric}_bucket{{job="pushed",le=~"{bound}"}})')
            assert counted == below
            assert counted > 0


def test_exponential_histograms_become_native_ones(
    tiny_model: Path, running: Stack, tmp_path: Path
) -> None:
    """Without further settings a pushed histogram is a native one in Prometheus."""
    collector = Collector.prepare(
        tmp_path / "push",
        "push.yaml",
        jaeger=running.jaeger.otlp,
        victorialogs=running.victorialogs.url,
        prometheus=running.prometheus.url,
    )
    variables = sending(collector, OTEL_TRACES_EXPORTER="none", OTEL_SERVICE_NAME="native")
    with collector.program, serve_tiny(tiny_model, variables) as served:
        for _ in range(3):
            ask(served)
        until(
            lambda: running.prometheus.value(
                'sum(histogram_count(gen_ai_server_request_duration_seconds{job="native"}))'
            ),
            lambda count: count == 3,
            what="a native histogram",
        )


def test_sampling_keeps_what_failed(tiny_model: Path, running: Stack, tmp_path: Path) -> None:
    """With sampling.yaml at 0 % a failed request's trace is in Jaeger, and a good one's is not."""
    collector = Collector.prepare(
        tmp_path / "sampling",
        "sampling.yaml",
        jaeger=running.jaeger.otlp,
        victorialogs=running.victorialogs.url,
        COLLECTOR_SAMPLING_PERCENTAGE="0",
        COLLECTOR_DECISION_WAIT="1s",
    )
    variables = sending(collector, OTEL_METRICS_EXPORTER="none")
    with collector.program, serve_tiny(tiny_model, variables) as served:
        good = ask(served)
        late = ask(served, **{"X-Request-Timeout": "0.000001"})
        assert (good.status, late.status) == (200, 504)
        until(
            lambda: running.jaeger.spans(late.trace),
            lambda spans: len(spans) > 1,
            what="the failed trace is kept",
        )
        with pytest.raises(OSError, match="404"):
            running.jaeger.spans(good.trace)
