"""The log for a collector that is away: no line waits, each is counted, and none is about another."""

from __future__ import annotations

import logging
import re
import time

import pytest

from mlx_pharos.telemetry.telemetry import Telemetry, TelemetryOptions
from support.client import wait_until
from support.collector import attributes_of, collector, dead_port, failing_collector

_FAULTS = ["dead", "silent", "unavailable", "dead for grpc"]
_requests = logging.getLogger("mlx_pharos.requests")


@pytest.fixture(autouse=True)
def _logs_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log goes out too; a batch leaves after 10 ms and is tried for a tenth of a second."""
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_BLRP_SCHEDULE_DELAY", "10")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")


def _told(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What was logged, less the lines of the exporter's transport, which are not for the collector."""
    return [each for each in caplog.records if not each.name.startswith("urllib3")]


def _of_telemetry(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What telemetry and its packages say themselves."""
    own = ("mlx_pharos.telemetry", "opentelemetry", "grpc", "requests")
    return [each.getMessage() for each in _told(caplog) if each.name.startswith(own)]


@pytest.mark.parametrize("fault", _FAULTS)
def test_lost_lines_are_counted_and_beget_no_lines(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At level debug too: each line is counted once, and one a minute says that they are lost.

    That line is itself one of those that are lost. Nothing else is logged about
    them, however often sending fails: else the log would never be still again.
    """
    if fault == "dead for grpc":
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    caplog.set_level(logging.DEBUG)
    clock = [1000.0]

    def lose(lines: int) -> None:
        said = len(_of_telemetry(caplog))
        for _ in range(lines):
            _requests.info("request")
        # The line about it first: a lost span might have it otherwise.
        wait_until(lambda: len(_of_telemetry(caplog)) > said)
        wait_until(lambda: losses.count("logs") == len(_told(caplog)))
        for _ in range(5):  # a span each, so that sending goes on to fail
            before = losses.count("traces")
            telemetry.tracer.start_span("x").end()
            wait_until(lambda before=before: losses.count("traces") > before)  # type: ignore[misc]
        wait_until(lambda: losses.count("logs") == len(_told(caplog)))

    with failing_collector(fault) as endpoint:
        options = TelemetryOptions(model="tiny", otlp_endpoint=endpoint)
        with Telemetry(options, clock=lambda: clock[0]) as telemetry:
            losses = telemetry.losses
            lose(50)
            (line,) = _of_telemetry(caplog)
            assert re.search(r"does not reach the collector: lost logs \d+ \(export_failed\)", line)
            clock[0] += 61
            lose(50)
            assert 2 == len(_of_telemetry(caplog))
            told = len(_told(caplog))
            assert 102 <= told == losses.count("logs", "export_failed")
            text, _ = telemetry.prometheus.scrape()
    name = 'pharos_telemetry_dropped_total{signal="logs",reason='
    assert f'{name}"export_failed"}} {told}.0' in text
    assert f'{name}"queue_full"}} 0.0' in text


@pytest.mark.parametrize("fault", _FAULTS[:3])
def test_logging_never_waits(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However the collector is, 5,000 lines are taken at once, memory holds one queue, none is missing."""
    monkeypatch.setenv("OTEL_BLRP_MAX_QUEUE_SIZE", "100")
    monkeypatch.setenv("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", "10")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "30")
    caplog.set_level(logging.INFO)
    with failing_collector(fault) as endpoint:
        telemetry = Telemetry(TelemetryOptions(model="tiny", otlp_endpoint=endpoint))
        longest = 0.0
        for _ in range(5000):
            begin = time.monotonic()
            _requests.info("request")
            longest = max(longest, time.monotonic() - begin)
        assert longest < 10  # where somebody waits for an export it is half a minute
        told = sum(each.name.startswith("mlx_pharos") for each in _told(caplog))
        telemetry.shutdown(budget_seconds=0.5)
        assert telemetry.losses.count("logs", "queue_full") >= 4000
        assert told >= 5001
        # Exporters that are stopped while they try again say so, of a test before this one too.
        wait_until(lambda: told <= telemetry.losses.count("logs") <= len(_told(caplog)))


def test_recovery_comes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the collector answers again new lines arrive, and how many are lost is told there."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3")  # also where the machine is busy
    port = dead_port()
    with Telemetry(
        TelemetryOptions(model="tiny", otlp_endpoint=f"http://127.0.0.1:{port}")
    ) as telemetry:
        _requests.warning("lost")
        wait_until(
            lambda: telemetry.losses.count("logs") == 2
        )  # that line, and what was said of it
        with collector(port) as target:
            _requests.warning("seen")
            wait_until(lambda: [line.body.string_value for line in target.logs()] == ["seen"])
            telemetry.force_flush()
            (lost,) = [
                point.as_int or point.as_double
                for point in target.metrics()["pharos.telemetry.dropped"].sum.data_points
                if attributes_of(point) == {"signal": "logs", "reason": "export_failed"}
            ]
            assert 2 == lost
