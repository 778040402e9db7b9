"""Faults of time: answers that take too long, and waits that do. Nobody else may notice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.asks import endless_asks
from support.examination import Load
from support.planted import planted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.asks import Reply
    from support.examination import Examination
    from support.patient import Patient

pytestmark = pytest.mark.battery

_NARROW = ("--max-batch", "24", "--max-queue", "40")


def _assert_out_of_time(reply: Reply) -> None:
    """A stream that has begun ends with an event, after its text; a body is a status."""
    assert "deadline_exceeded" == reply.error, reply
    assert (200 if reply.ask.streams else 504) == reply.status
    assert all(reply.texts.values())


@pytest.mark.parametrize(
    ("flags", "headers"),
    [
        ((), {"X-Request-Timeout": "4"}),
        (("--request-timeout", "15"), {"X-Request-Timeout": "600"}),
    ],
    ids=["header", "setting"],
)
def test_answers_that_take_too_long(
    patient_model: Path,
    examine: Callable[[Patient], Examination],
    flags: tuple[str, ...],
    headers: dict[str, str],
) -> None:
    """Each ends with the documented error; a client can shorten its time and not lengthen it."""
    with planted(patient_model, *_NARROW, *flags) as server:
        examination = examine(server)
        asks = examination.draw(6)
        with (
            examination.load(endless_asks(), headers=headers, probe=False) as late,
            examination.load(asks) as load,
        ):
            pass
        examination.judge(Load([*load.clients, *late.clients]), whole=False)
        assert all(reply.whole for reply in load.replies)
        for reply in late.replies:
            _assert_out_of_time(reply)
        figure = "pharos_requests_finished_total"
        assert 6 == server.total(figure, error_type="deadline_exceeded", finish_reason="error")


def test_waits_that_take_too_long(
    tiny_model: Path, examine: Callable[[Patient], Examination]
) -> None:
    """The engine stands still under those that it has begun, which are whole in the end; who came
    behind them is told when to come back, streams by a status too.
    """
    with planted(tiny_model, *_NARROW, "--queue-timeout", "6") as server:
        examination = examine(server)
        asks = examination.draw(14, tokens=400)
        running = [ask for ask in asks if ask.streams]
        with examination.load(running) as load:
            server.wait_for(
                lambda: all(any(reply.texts.values()) for reply in load.replies), "all begun"
            )
            server.engine.suspend()
            with (
                examination.load(asks[:4], probe=False) as late,
                examination.load(
                    asks[4:8], headers={"X-Request-Timeout": "1"}, probe=False
                ) as hasty,
            ):
                pass
            server.engine.resume()
        turned_away = Load([*load.clients, *late.clients, *hasty.clients])
        examination.judge(turned_away, whole=False, refusals=True)
        assert all(reply.whole for reply in load.replies)
        assert {(503, "queue_timeout")} == {(each.status, each.error) for each in late.replies}
        assert all(1 <= int(reply.retry_after) <= 60 for reply in late.replies)
        assert {(504, "deadline_exceeded")} == {(each.status, each.error) for each in hasty.replies}
        assert 4 == server.total("pharos_admission_refusals_total", reason="deadline")
