"""OTLP over gRPC, the extra: what arrives, and what an absent collector or package does."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING

import pytest

from mlx_pharos.telemetry.otlp import otlp_problems
from mlx_pharos.telemetry.telemetry import Telemetry, TelemetryOptions
from support.collector import attributes_of, failing_collector
from support.grpc_collector import grpc_collector

if TYPE_CHECKING:
    from collections.abc import Iterator

PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"


@pytest.fixture(autouse=True)
def _grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROTOCOL, "grpc")


def test_all_signals_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans, metrics and log records come to a gRPC receiver, with the headers of the variables."""
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=lab")
    with grpc_collector() as target:
        telemetry = Telemetry(TelemetryOptions(model="tiny", otlp_endpoint=target.endpoint))
        telemetry.tracer.start_span("work", attributes={"a": 1}).end()
        telemetry.instruments.tokens.add(3, {"model": "tiny", "type": "output"})
        telemetry.instruments.inter_token.fold(0.03, 4)
        logging.getLogger("mlx_pharos").warning("said")
        assert telemetry.shutdown()
        (span,) = target.spans()
        metrics = target.metrics()
        (request,) = target.requests("logs")
    assert ("work", {"a": 1}) == (span.name, attributes_of(span))
    assert 3 == metrics["pharos.tokens"].sum.data_points[0].as_int
    (point,) = metrics["pharos.inter_token.duration"].exponential_histogram.data_points
    assert 4 == point.count
    (record,) = request.resource_logs[0].scope_logs[0].log_records
    assert "said" == record.body.string_value
    assert {"lab"} == {each["x-tenant"] for each in target.metadata}
    assert 0 == sum(each.value for each in telemetry.losses.readings())


def test_the_variables_name_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a setting, OpenTelemetry's own variable says where to send, for gRPC too."""
    with grpc_collector() as target:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", target.endpoint)
        with Telemetry(TelemetryOptions(model="tiny")) as telemetry:
            telemetry.tracer.start_span("work").end()
        assert ["work"] == [span.name for span in target.spans()]


@pytest.fixture(params=["dead", "silent"])
def absent(request: pytest.FixtureRequest) -> Iterator[str]:
    """An endpoint where nobody answers."""
    with failing_collector(request.param) as endpoint:
        yield endpoint


def test_a_shutdown_keeps_its_budget(absent: str) -> None:
    """With a collector that is dead or silent, the shutdown ends within 5 s, and losses count."""
    telemetry = Telemetry(TelemetryOptions(model="tiny", otlp_endpoint=absent))
    for _ in range(50):
        telemetry.tracer.start_span("x").end()
    begin = time.monotonic()
    telemetry.shutdown()
    assert time.monotonic() - begin <= 7.5  # the budget, and what a busy machine adds
    assert 50 == telemetry.losses.count("traces")


def test_a_missing_extra_is_said_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start is refused with the command that mends it, before anything is loaded."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc", None)
    ((name, text),) = otlp_problems("http://127.0.0.1:4317")
    assert PROTOCOL == name
    assert 'pip install "mlx-pharos[grpc]"' in text


def test_with_the_extra_there_is_nothing_to_say() -> None:
    """The package is there: nothing is wrong."""
    assert [] == otlp_problems("http://127.0.0.1:4317")
