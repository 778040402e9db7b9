"""What OpenTelemetry's packages log, and what of it is said."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from mlx_pharos.telemetry.losses import Losses, ThrottledLog

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
    assert "(no connection)" in loss
    bench.now += 61
    OTHER.warning("something else")
    assert "something else [2 lines like this were held back]" == _said(caplog)[-1]


def test_a_line_cannot_steer_a_terminal(bench: _Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A collector's answer is in the reason for a loss."""
    EXPORTER.error("500 \x1b[2J\x9b1m\r\nforged line")
    bench.losses.add("logs", "export_failed", 1)
    assert _said(caplog)[0].isprintable()
    assert "(500 ?[2J?1m??forged line)" in _said(caplog)[0]


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
