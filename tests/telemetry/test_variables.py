"""OpenTelemetry's own variables, each by what a receiver gets: samplers, endpoints, headers, protocols."""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from mlx_pharos.telemetry.collector import make_window
from mlx_pharos.telemetry.telemetry import Telemetry, TelemetryOptions
from support.clock import SimulatedClock
from support.collector import collector
from support.grpc_collector import grpc_collector
from support.simulated import SimulatedRequests
from support.whole_answer import answer, ask

if TYPE_CHECKING:
    from support.collector import Collector

_SPANS = 5
"""Of a request that was answered in whole."""
_OTLP = "OTEL_EXPORTER_OTLP"
_SIGNALS = ("traces", "metrics", "logs")


def _kept(count: int, *, traceparent: str = "") -> int:
    """Answer so many requests and return how many traces came to the receiver, each of them whole."""
    clock = SimulatedClock()
    with collector() as target:
        options = TelemetryOptions(model="tiny", otlp_endpoint=target.endpoint)
        with Telemetry(options, window=make_window(clock=clock)) as telemetry:
            requests = SimulatedRequests(telemetry, clock)
            requests.middleware._application = answer
            for number in range(count):
                ask(requests.middleware, traceparent.format(number + 1))
        traces = Counter(span.trace_id for span in target.spans())
    assert {_SPANS} >= set(traces.values())
    return len(traces)


@pytest.mark.parametrize(
    ("sampler", "ratio", "kept"),
    [
        ("always_on", "", (20, 20, 20)),
        ("always_off", "", (0, 0, 0)),
        ("traceidratio", "1", (20, 20, 20)),
        ("traceidratio", "0", (0, 0, 0)),
        ("parentbased_always_on", "", (20, 20, 0)),
        ("parentbased_always_off", "", (0, 20, 0)),
        ("parentbased_traceidratio", "1", (20, 20, 0)),
        ("parentbased_traceidratio", "0", (0, 20, 0)),
    ],
)
def test_the_sampler_decides_on_whole_traces(
    sampler: str, ratio: str, kept: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of requests without a trace, and with one that its caller keeps, or does not keep."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    if ratio:
        monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", ratio)
    parent = "00-{:032x}-b7ad6b7169203331-"
    assert kept == (
        _kept(20),
        _kept(20, traceparent=f"{parent}01"),
        _kept(20, traceparent=f"{parent}00"),
    )


def test_the_samplers_argument_is_the_share_of_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the ids is kept, by their last eight bytes: the same in every service."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.25")
    ids = f"00-{'a' * 16}{{0:02x}}{'0' * 14}-b7ad6b7169203331-01"
    assert 63 == _kept(127, traceparent=ids)  # of 01 to 7f those below 40


def _tell(telemetry: Telemetry) -> None:
    """Say something by each signal; metrics are always there."""
    telemetry.tracer.start_span("work").end()
    logging.getLogger("mlx_pharos").warning("said")


def _received(target: Collector) -> set[str]:
    return {signal for signal in _SIGNALS if target.requests(signal)}


def test_each_signal_has_an_endpoint_and_headers_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where they are set they win over those for all, and a header's value is read as a URL's."""
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "otlp")
    monkeypatch.setenv(f"{_OTLP}_HEADERS", "x-tenant=all,authorization=Bearer%20a%3Db")
    with ExitStack() as stack:
        targets = {signal: stack.enter_context(collector()) for signal in _SIGNALS}
        everything = stack.enter_context(collector())
        monkeypatch.setenv(f"{_OTLP}_ENDPOINT", everything.endpoint)
        for signal in ("traces", "logs"):
            name, url = signal.upper(), targets[signal].endpoint
            monkeypatch.setenv(f"{_OTLP}_{name}_ENDPOINT", f"{url}/v1/{signal}")
            monkeypatch.setenv(f"{_OTLP}_{name}_HEADERS", f"x-tenant={signal}")
        with Telemetry(TelemetryOptions(model="tiny")) as telemetry:
            _tell(telemetry)
        assert {"traces"} == _received(targets["traces"])
        assert {"logs"} == _received(targets["logs"])
        assert {"metrics"} == _received(everything)
        assert set() == _received(targets["metrics"])
        for signal in ("traces", "logs"):
            for headers in targets[signal].headers:
                assert (signal, None) == (headers["x-tenant"], headers.get("authorization"))
        for headers in everything.headers:
            assert ("all", "Bearer a=b") == (headers["x-tenant"], headers["authorization"])


@pytest.mark.parametrize("signal", _SIGNALS)
def test_an_endpoint_of_one_signal_sends_that_one_alone(
    signal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else is sent anywhere, with no endpoint for it."""
    if signal == "logs":
        monkeypatch.setenv("OTEL_LOGS_EXPORTER", "otlp")
    with collector() as target:
        monkeypatch.setenv(f"{_OTLP}_{signal.upper()}_ENDPOINT", f"{target.endpoint}/v1/{signal}")
        with Telemetry(TelemetryOptions(model="tiny")) as telemetry:
            _tell(telemetry)
            assert 1 == len(telemetry._closables)
        assert {signal} == _received(target)


@pytest.mark.parametrize("signal", _SIGNALS)
def test_each_signal_has_a_protocol_of_its_own(
    signal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One goes by gRPC with its own headers, the others by HTTP."""
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "otlp")
    monkeypatch.setenv(f"{_OTLP}_{signal.upper()}_PROTOCOL", "grpc")
    monkeypatch.setenv(f"{_OTLP}_{signal.upper()}_HEADERS", "x-tenant=grpc")
    with collector() as target, grpc_collector() as other:
        monkeypatch.setenv(f"{_OTLP}_ENDPOINT", target.endpoint)
        monkeypatch.setenv(f"{_OTLP}_{signal.upper()}_ENDPOINT", other.endpoint)
        with Telemetry(TelemetryOptions(model="tiny")) as telemetry:
            _tell(telemetry)
        assert set(_SIGNALS) - {signal} == _received(target)
        assert {signal} == {each for each in _SIGNALS if other.requests(each)}
        assert {"grpc"} == {each["x-tenant"] for each in other.metadata}
        assert not any("x-tenant" in each for each in target.headers)
        assert 0 == sum(each.value for each in telemetry.losses.readings())
