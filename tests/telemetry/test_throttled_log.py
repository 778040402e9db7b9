"""What OpenTelemetry's packages log, and what of it is said."""

from __future__ import annotations

import logging
import socket
import time
from typing import TYPE_CHECKING

import pytest
import requests

from mlx_pharos.telemetry.losses import Losses, ThrottledLog
from support.collector import dead_port

if TYPE_CHECKING:
    from collections.abc import Iterator

OTHER = logging.getLogger("opentelemetry.sdk.metrics")
EXPORTER = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")


class _Bench:
    """The packages' log on a clock of the test's."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.log = ThrottledLog(lambda: self.now)
        self.losses = Losses(self.log)


@pytest.fixture
def bench() -> Iterator[_Bench]:
    """Open until the end of the test."""
    found = _Bench()
    found.log.open()
    try:
        yield found
    finally:
        found.log.close()


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines that the program's own log gets."""
    return [each.getMessage() for each in caplog.records if each.name.startswith("mlx_pharos")]


def test_a_loss_is_told_whatever_else_is_said(
    bench: _Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Other lines have a minute of their own, and losses have theirs."""
    for _ in range(3):
        OTHER.warning("something else")
        EXPORTER.error("no connection")
        bench.losses.add("traces", "export_failed", 1)
    other, loss = _said(caplog)
    assert "something else" == other
    assert "telemetry does not reach the collector" in loss
    assert "the last failure: no connection" in loss
    bench.now += 61
    OTHER.warning("something else")
    assert "something else [2 lines like this were held back]" == _said(caplog)[-1]


def test_a_line_has_all_losses_since_the_last_one(
    bench: _Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """By signal and reason; and a failure is no cause of what was rejected after it."""
    bench.losses.add("traces", "export_failed", 1)
    bench.losses.add("metrics", "export_failed", 20)
    bench.losses.add("traces", "queue_full", 300)
    bench.now += 61
    bench.losses.add("traces", "export_failed", 4)
    EXPORTER.error("no connection")
    bench.now += 61
    bench.losses.add("logs", "rejected", 5, "quota")
    begin = "telemetry does not reach the collector: lost"
    queue, held = "traces 300 (queue_full)", "[2 lines like this were held back]"
    assert [
        f"{begin} traces 1 (export_failed); 1 items since the start",
        f"{begin} {queue}, traces 4 (export_failed), metrics 20 (export_failed); 325 items since the start {held}",
        f"{begin} logs 5 (rejected); 330 items since the start; it says: quota",
    ] == _said(caplog)


def test_a_failure_says_why(bench: _Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The first of the errors that led to each other, and not that the exporter has given up."""
    for _ in range(2):
        try:
            try:
                socket.create_connection(("127.0.0.1", dead_port()))
            except OSError as error:
                raise requests.ConnectionError("pool") from error
        except requests.ConnectionError as error:
            EXPORTER.warning("Transient error %s encountered while exporting", error)
        EXPORTER.error("Failed to export %s batch due to timeout, max retries or shutdown.", "x")
        bench.losses.add("logs", "export_failed", 1)
        bench.now += 61
        assert (
            "the last failure: Transient error ConnectionRefusedError: [Errno" in _said(caplog)[-1]
        )


def test_a_failure_that_was_got_over_is_no_cause(
    bench: _Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retry that went well, hours ago, says nothing of an export that fails now."""
    EXPORTER.warning("Transient error refused encountered, retrying")
    later = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: later)
    EXPORTER.error("Failed to export due to timeout, max retries or shutdown.")
    bench.losses.add("logs", "export_failed", 1)
    assert "the last failure: Failed to export due to timeout" in _said(caplog)[0]


def test_the_last_line_has_what_was_held_back(
    bench: _Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Losses within a minute of the line before are told at the end, also if the end lost nothing."""
    bench.losses.add("traces", "queue_full", 10)
    bench.losses.add("traces", "queue_full", 500)
    bench.losses.add("logs", "rejected", 2, "quota")
    bench.losses.begin_shutdown()
    EXPORTER.warning("Shutdown in progress, aborting retry.")
    bench.losses.tell_shutdown(complete=True)
    assert (
        "telemetry did not reach the collector before the end: traces 500 (queue_full), "
        "logs 2 (rejected); 512 items since the start; it says: quota "
        "[2 lines like this were held back]"
    ) == _said(caplog)[-1]
    bench.losses.tell_shutdown(complete=True)
    assert 2 == len(_said(caplog))


def test_a_line_cannot_steer_a_terminal(bench: _Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A collector's answer is in the reason for a loss."""
    EXPORTER.error("500 \x1b[2J\x9b1m\r\nforged line")
    bench.losses.add("logs", "export_failed", 1)
    assert _said(caplog)[0].isprintable()
    assert "the last failure: 500  [2J 1m  forged line" in _said(caplog)[0]


def test_no_lock_is_held_while_a_line_is_written(
    bench: _Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where logging takes a handler's lock without asking, as Python 3.13's does."""

    def handle(handler: logging.Handler, record: logging.LogRecord) -> None:
        with handler.lock:  # type: ignore[union-attr] # there has to be one
            handler.emit(record)

    monkeypatch.setattr(logging.Handler, "handle", handle)
    OTHER.warning("heard")
    assert bench.log.lock is None
    assert ["heard"] == _said(caplog)


def test_a_filter_may_replace_a_line(bench: _Bench, caplog: pytest.LogCaptureFixture) -> None:
    """As logging's own handlers have it from Python 3.12 on; and leave one out, as ever."""

    def replace(record: logging.LogRecord) -> logging.LogRecord | bool:
        return logging.makeLogRecord({**vars(record), "msg": "other"}) if record.args else False

    bench.log.addFilter(replace)  # type: ignore[arg-type] # since 3.12
    OTHER.warning("left out")
    OTHER.warning("replaced %s", "x")
    assert _said(caplog) in (["other"], ["replaced x"])
