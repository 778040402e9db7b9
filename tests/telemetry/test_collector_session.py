"""Collectors that redirect, reject, drip or flood: each item is counted, and none costs more than its share."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import logging
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from mlx_pharos.telemetry.batching import Batcher, BatchLimits
from mlx_pharos.telemetry.losses import Losses, ThrottledLog
from mlx_pharos.telemetry.otlp import otlp_target, span_exporter
from mlx_pharos.telemetry.rejections import Rejections
from mlx_pharos.telemetry.telemetry import Telemetry, TelemetryOptions
from support.raw_collector import RawCollector, raw_collector

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Sequence

_SIGNALS = ("traces", "metrics", "logs")
_TIMEOUT = 0.5
"""Seconds of an attempt that is to run out of time."""
_SOON = 8.0
"""Seconds within which such an attempt has ended on a machine that is busy; a drip goes on for ever."""
_OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\n"
_ENDLESS = b"x" * 65536


@pytest.fixture(autouse=True)
def _sent_when_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """All signals are sent, each when a test says so, and tried for as long as a busy machine needs."""
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "20")
    for name in ("OTEL_BSP_SCHEDULE_DELAY", "OTEL_BLRP_SCHEDULE_DELAY"):
        monkeypatch.setenv(name, "600000")
    # The exporter of logs does not repeat itself for up to 20 s, also from test to test.
    exporters = logging.getLogger("opentelemetry.exporter.otlp.proto.http._log_exporter")
    monkeypatch.setattr(exporters, "filters", [])


def _whole(head: bytes, body: bytes = b"") -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def _always(answer: bytes) -> Callable[[RawCollector, socket.socket], None]:
    return lambda collector, connection: collector.send(connection, answer)


@contextlib.contextmanager
def _telemetry(endpoint: str) -> Iterator[Telemetry]:
    telemetry = Telemetry(TelemetryOptions(model="tiny", otlp_endpoint=endpoint))
    try:
        yield telemetry
    finally:
        telemetry.shutdown(budget_seconds=1)


def _send(telemetry: Telemetry, signal: str, count: int = 3) -> None:
    """Send some of one signal, in this thread."""
    if signal == "metrics":
        telemetry.instruments.tokens.add(1, {"model": "tiny", "type": "output"})
        telemetry._meters.force_flush()
    elif signal == "traces":
        for _ in range(count):
            telemetry.tracer.start_span("x").end()
        telemetry._tracers.force_flush()
    else:
        for _ in range(count):
            logging.getLogger("mlx_pharos.tests").warning("line")
        (queue,) = [each for each in telemetry._closables if type(each).__name__ == "LogQueue"]
        queue.force_flush()  # type: ignore[attr-defined]


def _lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each for each in caplog.messages if "does not reach the collector" in each]


@pytest.mark.parametrize("signal", _SIGNALS)
@pytest.mark.parametrize("status", [302, 307, 308])
def test_a_redirect_is_a_loss(status: int, signal: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is asked once, counted like other failures, and told with what to do and without secrets."""
    location = b"Location: https://ann:geheim@elsewhere.example:4318/key/geheim?token=geheim\r\n"
    answer = _whole(b"HTTP/1.1 %d Elsewhere\r\n" % status + location)
    with raw_collector(_always(answer)) as target, _telemetry(target.endpoint) as telemetry:
        _send(telemetry, signal)
        assert 1 == len(target.requests)
        lost = telemetry.losses.count(signal, "export_failed")
        assert lost == telemetry.losses.count(signal) >= 3
        text, _ = telemetry.prometheus.scrape()
    series = f'pharos_telemetry_dropped_total{{signal="{signal}",reason="export_failed"}}'
    assert f"{series} {lost}.0" in text
    (line,) = _lines(caplog)
    assert f"answered {status} and points to https://elsewhere.example:4318," in line
    assert "put the final address in --otlp-endpoint" in line
    assert "geheim" not in line


@pytest.mark.parametrize(
    "location",
    [
        b"",
        b"/v1/traces/?token=geheim",
        b"http://[geheim",
        b"http://geheim\x1b[2J",
        b"http://a:99999",
    ],
)
def test_a_redirect_that_leads_nowhere_is_told_too(
    location: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever its Location is, the loss is counted, and nothing of it stands in the log."""
    answer = _whole(b"HTTP/1.1 307 Elsewhere\r\nLocation: " + location + b"\r\n")
    with raw_collector(_always(answer)) as target, _telemetry(target.endpoint) as telemetry:
        _send(telemetry, "traces")
        assert 3 == telemetry.losses.count("traces", "export_failed")
    (line,) = _lines(caplog)
    assert "the collector answered 307, and redirects are not followed" in line
    assert "geheim" not in line


def _rejecting(signal: str, count: int, words: str) -> bytes:
    """Return an answer that takes all but ``count`` items."""
    answer: Any
    if signal == "traces":
        answer = ExportTraceServiceResponse()
        answer.partial_success.rejected_spans = count
    elif signal == "metrics":
        answer = ExportMetricsServiceResponse()
        answer.partial_success.rejected_data_points = count
    else:
        answer = ExportLogsServiceResponse()
        answer.partial_success.rejected_log_records = count
    answer.partial_success.error_message = words
    return bytes(answer.SerializeToString())


@pytest.mark.parametrize("signal", _SIGNALS)
def test_what_the_collector_rejects_is_counted(
    signal: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The rejected items alone, under a reason of their own, and told with the collector's words."""
    first = _whole(_OK, _rejecting(signal, 2, "too old\n\x1b[2J" + "x" * 999))
    answers = itertools.chain([first], itertools.repeat(_whole(_OK)))

    def answer(collector: RawCollector, connection: socket.socket) -> None:
        collector.send(connection, next(answers))

    with raw_collector(answer) as target, _telemetry(target.endpoint) as telemetry:
        _send(telemetry, signal)
        assert 2 == telemetry.losses.count(signal, "rejected") == telemetry.losses.count(signal)
        text, _ = telemetry.prometheus.scrape()
    assert f'pharos_telemetry_dropped_total{{signal="{signal}",reason="rejected"}} 2.0' in text
    (line,) = _lines(caplog)
    assert f"lost {signal} 2 (rejected); 2 items since the start; it says: too old  [2J" in line
    assert len(line) < 300


def test_no_more_is_rejected_than_was_sent() -> None:
    """A collector that rejects more than it got, or less than nothing, spoils no figure."""
    counts = itertools.chain([2**62, -5], itertools.repeat(0))

    def answer(collector: RawCollector, connection: socket.socket) -> None:
        collector.send(connection, _whole(_OK, _rejecting("traces", next(counts), "")))

    with raw_collector(answer) as target, _telemetry(target.endpoint) as telemetry:
        for _ in range(3):
            _send(telemetry, "traces")
        assert 3 == len(target.requests)
        assert 3 == telemetry.losses.count("traces")


@pytest.mark.parametrize(
    "answer",
    [
        _whole(_OK, b"\xff\xff garbage"),
        _whole(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n", _rejecting("traces", 1, "")),
        _whole(b"HTTP/1.1 200 OK\r\n", b"thanks"),
        _whole(_OK + b"Content-Encoding: gzip\r\n", b"no gzip"),
        _whole(_OK + b"Content-Encoding: gzip\r\n", gzip.compress(b"\0" * (64 << 20))),
        _whole(_OK, b"x" * 300_000),
        b"HTTP/1.0 200 OK\r\n\r\n",
    ],
    ids=["garbage", "page", "untyped", "no gzip", "gzip bomb", "long", "old"],
)
def test_a_200_is_a_success_whatever_follows(answer: bytes) -> None:
    """Nothing is lost, memory holds some of the answer at most, and the next export goes on."""

    def send(collector: RawCollector, connection: socket.socket) -> None:
        collector.send(connection, answer)
        if answer.startswith(b"HTTP/1.0"):
            connection.shutdown(1)

    with raw_collector(send) as target, _telemetry(target.endpoint) as telemetry:
        _send(telemetry, "traces")
        tracemalloc.start()
        try:
            _send(telemetry, "traces")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 4 << 20
        assert 2 == len(target.requests)
        assert 0 == telemetry.losses.count("traces")


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Long: ",
        b"",
    ],
    ids=["body", "chunk size", "header", "status"],
)
@pytest.mark.parametrize("signal", _SIGNALS)
def test_an_answer_that_drips_ends_at_the_deadline(
    signal: str, head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a collector begins to send a byte now and then, what was sent is counted as lost."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", str(_TIMEOUT))

    def drip(collector: RawCollector, connection: socket.socket) -> None:
        collector.send(connection, head)
        while collector.pause(_TIMEOUT / 5):
            collector.send(connection, b"0")

    with raw_collector(drip) as target, _telemetry(target.endpoint) as telemetry:
        begin = time.monotonic()
        _send(telemetry, signal)
        took = time.monotonic() - begin
        assert _TIMEOUT * 0.9 <= took < _SOON
        assert telemetry.losses.count(signal, "export_failed") >= 3
        assert target.connections <= 2  # what is left of the time after rounding is for another try


@pytest.mark.parametrize(
    ("head", "part", "is_lost"),
    [
        (_OK + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + _ENDLESS + b"\r\n", False),
        (_OK + b"Content-Length: 99999999999\r\n\r\n", _ENDLESS, False),
        (_OK + b"\r\n", _ENDLESS, False),
        (b"HTTP/1.1 200 OK\r\n", b"X-Many: y\r\n" * 99, True),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 99, True),
    ],
    ids=["chunks", "length", "until the end", "headers", "continue"],
)
def test_an_answer_without_an_end_is_not_read_for_ever(
    head: bytes, part: bytes, is_lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A little of it is read, then the connection ends; after headers without an end all is lost."""
    if is_lost:  # after more tries
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", str(_TIMEOUT))

    def flood(collector: RawCollector, connection: socket.socket) -> None:
        collector.send(connection, head)
        while collector.pause(0):
            collector.send(connection, part)

    with raw_collector(flood) as target, _telemetry(target.endpoint) as telemetry:
        tracemalloc.start()
        try:
            begin = time.monotonic()
            _send(telemetry, "traces")
            took = time.monotonic() - begin
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert took < _SOON
        assert peak < 4 << 20
        assert target.sent < 32 << 20  # what was read, and what the kernel holds of each connection
        assert telemetry.losses.count("traces") == (3 if is_lost else 0)


@pytest.mark.parametrize(
    "answer",
    [
        _whole(_OK),
        _whole(_OK, _rejecting("traces", 0, "")),
        _whole(_OK, b"x" * 60_000),
        _OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        _whole(b"HTTP/1.1 400 Bad Request\r\n", b"no"),
    ],
    ids=["empty", "protobuf", "some", "chunks", "refused"],
)
def test_connections_are_kept(answer: bytes) -> None:
    """Exports follow each other on one connection, and each has all of its time."""
    with raw_collector(_always(answer)) as target, _telemetry(target.endpoint) as telemetry:
        for _ in range(4):
            _send(telemetry, "traces")
        assert (4, 1) == (len(target.requests), target.connections)
        assert b"accept-encoding: identity\r\n" in target.requests[0].lower()


def test_an_answer_that_is_cut_off_is_a_loss() -> None:
    """Where the end of an answer never comes, nobody knows that the collector has the items."""

    def cut(collector: RawCollector, connection: socket.socket) -> None:
        collector.send(connection, _OK + b"Content-Length: 99\r\n\r\nhalf")
        connection.shutdown(1)

    with raw_collector(cut) as target, _telemetry(target.endpoint) as telemetry:
        _send(telemetry, "traces")
        assert 3 == telemetry.losses.count("traces", "export_failed")


def test_no_cookies_are_kept() -> None:
    """A collector that sets new ones in each answer fills no memory, and gets none back."""
    names = itertools.count()

    def answer(collector: RawCollector, connection: socket.socket) -> None:
        collector.send(connection, _whole(_OK + b"Set-Cookie: name%d=x\r\n" % next(names)))

    with raw_collector(answer) as target, _telemetry(target.endpoint) as telemetry:
        for _ in range(3):
            _send(telemetry, "traces")
        assert 3 == len(target.requests)
        assert not [each for each in target.requests if b"cookie:" in each.lower()]


@pytest.mark.parametrize("scope", ["", "TRACES_"])
def test_a_plugin_may_bring_its_own_session(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that names one reaches the exporter, which looks for it."""
    name = f"OTEL_PYTHON_EXPORTER_OTLP_HTTP_{scope}CREDENTIAL_PROVIDER"
    monkeypatch.setenv(name, "no-such-plugin")
    target = otlp_target("traces", "http://127.0.0.1:4318")
    assert target
    with pytest.raises(RuntimeError, match="no-such-plugin"):
        span_exporter(target, Rejections())


def test_ticking_metrics_survive_a_drip(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that sends metrics comes back from each attempt, and counts it."""
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")

    def drip(collector: RawCollector, connection: socket.socket) -> None:
        while collector.pause(0.05):
            collector.send(connection, b"0")

    with raw_collector(drip) as target, _telemetry(target.endpoint) as telemetry:
        deadline = time.monotonic() + 10
        counts: set[int] = set()
        while len(counts) < 4 and time.monotonic() < deadline:
            counts.add(telemetry.losses.count("metrics", "export_failed"))
            target.pause(0.02)
        assert len(counts) >= 4


def test_what_is_rejected_after_the_end_is_counted_once() -> None:
    """A batch that a shutdown gave up is lost as a whole; what is said of it later adds nothing."""
    losses = Losses(ThrottledLog())
    batchers: list[Batcher[str]] = []

    def export(batch: Sequence[str]) -> bool:
        (batcher,) = batchers
        batcher.lose("rejected", 1)
        batcher._closing = True
        batcher.close(0)
        batcher.lose("rejected", len(batch))
        return False

    limits = BatchLimits(queue=10, batch=10, delay_seconds=60)
    batchers.append(Batcher(export, signal="traces", losses=losses, limits=limits))
    for name in "abc":
        batchers[0].put(name)
    batchers[0].flush()
    assert (1, 2) == (losses.count("traces", "rejected"), losses.count("traces", "shutdown"))
    assert 3 == losses.count("traces")
