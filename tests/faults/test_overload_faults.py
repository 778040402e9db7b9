"""Faults of too many: 200 clients at 4 places and a short queue, once, and again and again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from support.planted import planted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.asks import Ask
    from support.examination import Examination, Load
    from support.patient import Patient

pytestmark = pytest.mark.battery

_BATCH, _QUEUE, _CLIENTS = 4, 8, 200
_FLAGS = ("--max-batch", str(_BATCH), "--max-queue", str(_QUEUE), "--connection-limit", "512")
"""Of connections there are enough: on a busy machine a client may take long to send its request."""
_ATTEMPTS = 6
_NORMAL_SECONDS = 10.0
"""In which a chat is answered by a server that has nothing else to do. It takes a tenth of one."""


def _most_at_once(server: Patient, load: Load) -> int:
    """Return how many sequences the server had at most while the load lasted, as it was asked."""
    seen: list[int] = []

    def is_over() -> bool:
        report = server.health()
        seen.append(report["running"] + report["waiting"])
        return load.is_over

    server.wait_for(is_over, "all have an end", 60)
    return max(seen)


def _assert_normal(examination: Examination, ask: Ask) -> None:
    """A chat is answered in its time, beginning now."""
    begin = time.monotonic()
    examination.server.wait_idle()
    with examination.load([ask]) as load:
        pass
    assert load.replies[0].whole, load.replies
    assert time.monotonic() - begin < _NORMAL_SECONDS


def _judge(examination: Examination, load: Load) -> None:
    """Each was answered or told when to come back, and the full queue is the only reason."""
    examination.judge(load, whole=False, refusals=True)
    # A request has two texts at most, so these had places before anybody was refused.
    assert sum(each.whole for each in load.replies) >= (_BATCH + _QUEUE) // 2
    assert {(200, ""), (503, "queue_full")} == {(each.status, each.error) for each in load.replies}
    assert all(1 <= int(each.retry_after) <= 60 for each in load.replies if not each.whole)


def test_two_hundred_at_once(tiny_model: Path, examine: Callable[[Patient], Examination]) -> None:
    """No more are taken than there are places, and then all is as before."""
    with planted(tiny_model, *_FLAGS) as server:
        examination = examine(server)
        asks = examination.draw(6)
        with examination.load((asks * _CLIENTS)[:_CLIENTS]) as load:
            assert 0 < _most_at_once(server, load) <= _BATCH + _QUEUE
        _assert_normal(examination, asks[0])
        _judge(examination, load)


def test_a_storm(tiny_model: Path, examine: Callable[[Patient], Examination]) -> None:
    """Nobody waits as long as told, but comes back at once; after it all is as before."""
    with planted(tiny_model, *_FLAGS) as server:
        examination = examine(server)
        asks = examination.draw(6)
        with examination.load((asks * _CLIENTS)[:_CLIENTS], attempts=_ATTEMPTS) as load:
            pass
        _assert_normal(examination, asks[0])
        assert len(load.replies) > _CLIENTS
        _judge(examination, load)
