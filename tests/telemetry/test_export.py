"""Exporters against real sockets: what arrives, what is lost, and how long a shutdown takes."""

from __future__ import annotations

import logging
import re
import threading
import time
from typing import TYPE_CHECKING

import pytest

from mlx_pharos import __version__
from mlx_pharos.telemetry import telemetry as telemetry_module
from mlx_pharos.telemetry.correlation import CURRENT
from mlx_pharos.telemetry.telemetry import Telemetry, TelemetryOptions
from support.client import wait_until
from support.collector import (
    attributes_of,
    black_hole,
    collector,
    dead_port,
    failing_collector,
)

if TYPE_CHECKING:
    from collections.abc import Callable

FAULTS = ["dead", "silent", "unavailable"]


def _telemetry(endpoint: str = "", **options: Callable[[], float]) -> Telemetry:
    return Telemetry(TelemetryOptions(model="tiny", otlp_endpoint=endpoint), **options)  # type: ignore[arg-type]


def _threads() -> set[threading.Thread]:
    return set(threading.enumerate())


def test_nothing_configured_exports_nothing() -> None:
    """Without an endpoint there is no exporter and no thread, and the views work."""
    before = _threads()
    with _telemetry() as telemetry:
        telemetry.instruments.tokens.add(3, {"model": "tiny", "type": "output"})
        assert not telemetry.exports
        assert before == _threads()
        text, _ = telemetry.prometheus.scrape()
        assert 'pharos_tokens_total{model="tiny",type="output"} 3.0' in text
        assert telemetry.window.read().total == 0


def test_without_an_exporter_spans_are_only_ids() -> None:
    """A span that nobody would see is not recorded, but its trace id can stand in the log."""
    with _telemetry() as telemetry:
        span = telemetry.tracer.start_span("x")
        assert not span.is_recording()
        assert span.get_span_context().trace_id


def test_everything_arrives() -> None:
    """Spans, metrics and the resource arrive at a collector, at the latest with the shutdown."""
    with collector() as target:
        telemetry = _telemetry(target.endpoint)
        telemetry.tracer.start_span("work", attributes={"a": 1}).end()
        telemetry.instruments.tokens.add(3, {"model": "tiny", "type": "output"})
        telemetry.instruments.queue_duration.at({"model": "tiny"}).fold(0.2)
        telemetry.instruments.inter_token.fold(0.03, 4)
        assert telemetry.shutdown()
        metrics = target.metrics()
        assert ["work"] == [span.name for span in target.spans()]
        assert 3 == metrics["pharos.tokens"].sum.data_points[0].as_int
        queue = metrics["pharos.request.queue.duration"]
        assert 1 == queue.exponential_histogram.data_points[0].count
        (point,) = metrics["pharos.inter_token.duration"].exponential_histogram.data_points
        assert (4, {"model": "tiny"}) == (point.count, attributes_of(point))
        resource = attributes_of(target.requests("traces")[0].resource_spans[0].resource)
        assert ("pharos", __version__) == (resource["service.name"], resource["service.version"])
        assert resource["service.instance.id"]
        assert 0 == sum(each.value for each in telemetry.losses.readings())


def test_opentelemetrys_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Endpoint, headers, service name and resource attributes come from the standard variables."""
    with collector() as target:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", target.endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=lab")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "chat")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        with _telemetry() as telemetry:
            telemetry.tracer.start_span("x").end()
        resource = attributes_of(target.requests("traces")[0].resource_spans[0].resource)
        assert ("chat", "test") == (
            resource["service.name"],
            resource["deployment.environment.name"],
        )
        assert all("lab" == each["x-tenant"] for each in target.headers)


def test_the_sampler_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_TRACES_SAMPLER decides what is recorded."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    with collector() as target:
        with _telemetry(target.endpoint) as telemetry:
            telemetry.tracer.start_span("x").end()
        assert [] == target.spans()


def test_signals_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_METRICS_EXPORTER=none leaves the metrics here; logs go out only when asked for."""
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    with collector() as target:
        with _telemetry(target.endpoint) as telemetry:
            telemetry.tracer.start_span("x").end()
            logging.getLogger("mlx_pharos").warning("stays here")
        assert (1, [], []) == (len(target.spans()), target.requests("metrics"), target.logs())


def test_the_log_is_sent_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """With OTEL_LOGS_EXPORTER=otlp lines arrive with their fields and trace, without paths and texts."""
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "otlp")
    log = logging.getLogger("mlx_pharos.requests")
    with collector() as target:
        handlers = list(logging.getLogger().handlers)
        with _telemetry(target.endpoint):
            token = CURRENT.set(("0" * 31 + "a", "0" * 15 + "b"))
            numbers = [7]
            log.warning("request %s", numbers, extra={"status": 200, "route": numbers})
            numbers.clear()  # the line is as it was when it was logged
            CURRENT.reset(token)
            try:
                int("a prompt")
            except ValueError:
                log.exception("failed")
        assert handlers == logging.getLogger().handlers
        first, second = target.logs()
    assert ("request [7]", "WARNING") == (first.body.string_value, first.severity_text)
    assert {"status": 200, "route": "[7]"} == attributes_of(first)
    assert (10, 11) == (int(first.trace_id.hex(), 16), int(first.span_id.hex(), 16))
    assert first.time_unix_nano == first.observed_time_unix_nano
    assert {"exception.type": "ValueError"} == attributes_of(second)
    assert not second.trace_id
    assert "a prompt" not in str(second)


def test_the_sdk_can_be_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_SDK_DISABLED leaves no exporter, no figure and no error."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    before = _threads()
    with collector() as target:
        with _telemetry(target.endpoint) as telemetry:
            telemetry.instruments.tokens.add(1, {})
            telemetry.tracer.start_span("x").end()
            assert ("", 0) == (telemetry.prometheus.scrape()[0], telemetry.window.read().total)
            assert "# EOF\n" == telemetry.prometheus.scrape("application/openmetrics-text")[0]
            assert not telemetry.exports
        assert [] == target.requests("traces")
    assert before == _threads()


def test_delta_temporality_reaches_folded_histograms(monkeypatch: pytest.MonkeyPatch) -> None:
    """With delta preferred, each export has what came since the last one."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")
    with collector() as target, _telemetry(target.endpoint) as telemetry:
        counts = []
        for times in (3, 2):
            telemetry.instruments.inter_token.fold(0.5, times)
            telemetry.force_flush()
            metric = target.metrics()["pharos.inter_token.duration"]
            (point,) = metric.exponential_histogram.data_points
            counts.append((point.count, sum(point.positive.bucket_counts)))
        assert [(3, 3), (2, 2)] == counts


def test_explicit_buckets_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The standard variable chooses the buckets of all histograms, folded ones included."""
    monkeypatch.setenv(
        "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "explicit_bucket_histogram"
    )
    with collector() as target:
        with _telemetry(target.endpoint) as telemetry:
            telemetry.instruments.inter_token.fold(0.5)
            telemetry.instruments.gen_ai_request_duration.at({}).fold(0.5)
        for name in ("pharos.inter_token.duration", "gen_ai.server.request.duration"):
            (point,) = target.metrics()[name].histogram.data_points
            assert 1 == point.count


@pytest.mark.parametrize("fault", FAULTS)
def test_a_shutdown_keeps_its_budget(fault: str) -> None:
    """With a collector that is dead, silent or failing, the shutdown ends within 5 s, losses counted."""
    with failing_collector(fault) as endpoint:
        telemetry = _telemetry(endpoint)
        for _ in range(2000):
            telemetry.tracer.start_span("x").end()
        telemetry.instruments.tokens.add(1, {"model": "tiny", "type": "output"})
        begin = time.monotonic()
        telemetry.shutdown()
        assert time.monotonic() - begin <= 7.5  # the budget, and what a busy machine adds
        assert 2000 == telemetry.losses.count("traces")
        text, _ = telemetry.prometheus.scrape()
        assert 'pharos_telemetry_dropped_total{signal="traces"' in text


def test_a_slow_collector_costs_a_shutdown_no_more_than_its_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where each batch takes a second, what has no time to be sent is lost and counted."""
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "200")
    with collector() as target:
        target.delay = 1.0
        telemetry = _telemetry(target.endpoint)
        for _ in range(2000):
            telemetry.tracer.start_span("x").end()
        begin = time.monotonic()
        telemetry.shutdown()
        assert time.monotonic() - begin <= 7.5  # the budget, and what a busy machine adds
        lost, received = telemetry.losses.count("traces"), len(target.spans())
        # A batch that was under way at the end is counted as lost, and may have arrived.
        assert 2000 <= lost + received <= 2200
        assert received > 0


@pytest.mark.parametrize("fault", FAULTS)
def test_ending_a_span_never_waits(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the collector is, 20,000 spans end at once, and memory holds one queue of them."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "100")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
    with failing_collector(fault) as endpoint:
        telemetry = _telemetry(endpoint)
        waits = []
        for _ in range(20_000):
            span = telemetry.tracer.start_span("x")
            begin = time.monotonic()
            span.end()
            waits.append(time.monotonic() - begin)
        # Of 2,000 batches; a busy machine may stop a thread for longer, now and then.
        assert sorted(waits)[-20] < 0.1
        assert telemetry.losses.count("traces", "queue_full") >= 19_000
        begin = time.monotonic()
        telemetry.shutdown(budget_seconds=0.5)
        assert time.monotonic() - begin <= 0.5
        assert 20_000 == telemetry.losses.count("traces")


def test_recovery_comes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the collector answers again, new spans and metrics arrive without a restart."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    port = dead_port()
    with _telemetry(f"http://127.0.0.1:{port}") as telemetry:
        telemetry.tracer.start_span("lost").end()
        telemetry.instruments.tokens.add(7, {"model": "tiny", "type": "output"})
        wait_until(lambda: telemetry.losses.count("traces") == 1)
        wait_until(lambda: telemetry.losses.count("metrics") > 0)
        with collector(port) as target:
            telemetry.tracer.start_span("seen").end()
            wait_until(lambda: [span.name for span in target.spans()] == ["seen"])
            wait_until(lambda: "pharos.telemetry.dropped" in target.metrics())
            metrics = target.metrics()
            assert 7 == metrics["pharos.tokens"].sum.data_points[0].as_int


@pytest.mark.parametrize("fault", FAULTS)
def test_the_log_has_one_line_a_minute(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failing collector is said once a minute, with its reason, however often it fails."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "20")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
    clock = [1000.0]
    caplog.set_level(logging.DEBUG)

    def lines() -> list[str]:
        return [
            each.getMessage()
            for each in caplog.records
            if each.levelno >= logging.WARNING or each.name.startswith("opentelemetry")
        ]

    def fail(times: int) -> None:
        before = telemetry.losses.count("metrics")
        for _ in range(times):
            now = telemetry.losses.count("traces")
            telemetry.tracer.start_span("x").end()
            wait_until(lambda now=now: telemetry.losses.count("traces") > now)  # type: ignore[misc]
        wait_until(lambda: telemetry.losses.count("metrics") > before)

    with (
        failing_collector(fault) as endpoint,
        _telemetry(endpoint, clock=lambda: clock[0]) as telemetry,
    ):
        fail(3)
        (line,) = lines()
        assert "does not reach the collector" in line
        assert "export" in line
        clock[0] += 61
        fail(3)
        assert 2 == len(lines())
        assert "held back" in lines()[1]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_last_line_tells_what_a_shutdown_lost(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All three signals, each by its number, also within a minute of the line before."""
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    monkeypatch.setenv("OTEL_BLRP_SCHEDULE_DELAY", "600000")
    with failing_collector(fault) as endpoint:
        telemetry = _telemetry(endpoint, clock=lambda: 1000.0)
        telemetry.losses.add("traces", "queue_full", 3)
        for _ in range(7):
            telemetry.tracer.start_span("x").end()
            logging.getLogger("mlx_pharos").warning("lost")
        telemetry.shutdown()
    points = telemetry.losses.count("metrics")
    assert points > 0
    told = _told_at_the_end(caplog)
    # The line about the three is one that is lost.
    assert {"traces": 7, "metrics": points, "logs": 8} == told


def test_metrics_that_are_under_way_at_the_end_are_lost(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A collector that is silent for longer than the shutdown waits: they are counted and told."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "30")
    monkeypatch.setattr(telemetry_module, "_MARGIN_SECONDS", 2.0)  # a busy machine takes its time
    with black_hole() as endpoint:
        telemetry = _telemetry(endpoint)
        telemetry.shutdown(budget_seconds=3)
        points = telemetry.losses.count("metrics", "shutdown")
        assert points > 0
        text, _ = telemetry.prometheus.scrape()
    assert (
        f'pharos_telemetry_dropped_total{{signal="metrics",reason="shutdown"}} {points}.0' in text
    )
    assert {"metrics": points} == _told_at_the_end(caplog)


def _told_at_the_end(caplog: pytest.LogCaptureFixture) -> dict[str, int]:
    """Read the line of a shutdown: how much of each signal it lost."""
    (line,) = [each for each in caplog.messages if "before the end" in each]
    return {
        signal: int(count)
        for signal, count in re.findall(
            r"(\w+) (\d+) \((?:export_failed|shutdown)\)", line.partition(": ")[2]
        )
    }


def test_a_shutdown_that_loses_nothing_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Where all has arrived there is no line about it."""
    with collector() as target:
        with _telemetry(target.endpoint) as telemetry:
            telemetry.tracer.start_span("x").end()
        assert 1 == len(target.spans())
    assert not [each for each in caplog.messages if "the collector" in each]


def test_the_packages_log_again_after_a_shutdown() -> None:
    """What OpenTelemetry's packages log is only taken while telemetry runs."""
    source = logging.getLogger("opentelemetry")
    before = source.propagate, len(source.handlers)
    with _telemetry():
        assert (False, before[1] + 1) == (source.propagate, len(source.handlers))
    assert before == (source.propagate, len(source.handlers))
    assert source.propagate == (not source.handlers)


def test_a_shutdown_may_be_repeated() -> None:
    """Only the first shutdown does something, and the views go on."""
    telemetry = _telemetry()
    assert telemetry.shutdown()
    assert telemetry.shutdown()
    assert "target_info" in telemetry.prometheus.scrape()[0]
