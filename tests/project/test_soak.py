"""What the soak's report takes for a broken promise, and what it says of a short run."""

from __future__ import annotations

import subprocess
import sys
from collections import deque

import pytest
from bench.soak_faults import Window
from bench.soak_memory import MemoryWatch
from bench.soak_report import class_row

from support.asks import Ask, Reply
from support.patient import Patient

_KILL, _STOP = Window("kill", 10.0, 20.0), Window("stop", 15.0, 25.0)
_MEMORY = Window("memory", 15.0, 25.0)
_REFUSED = {"status": 503, "ends": 1, "error": "engine_unavailable"}
_DIED = {"status": 200, "ends": 1, "error": "engine_died"}
_CUT = {"status": 200, "ends": 0, "message": "IncompleteRead: 0"}
_RESET = {"message": "ConnectionResetError: reset"}


@pytest.mark.parametrize(
    ("got", "windows", "broken"),
    [
        ({"status": 200, "ends": 1}, [], False),
        (_REFUSED, [], True),
        (_REFUSED, [_KILL], False),
        (_DIED, [_KILL, _STOP], True),
        (_DIED, [_KILL, _MEMORY], False),
        (_CUT, [_KILL], True),
        (_CUT, [_MEMORY], True),
        ({"status": 200, "ends": 2}, [_MEMORY], True),
        (_RESET, [_KILL], True),
        (_RESET, [_MEMORY], False),
        ({"message": "TimeoutError: timed out"}, [_MEMORY], True),
    ],
)
def test_a_fault_excuses_what_it_may(
    got: dict[str, object], windows: list[Window], *, broken: bool
) -> None:
    """No fault excuses an answer without its one end; an engine's end excuses refusals alone."""
    reply = Reply(Ask("/", {}), seconds=2.0)
    for name, value in got.items():
        setattr(reply, name, value)
    _, found = class_row("short", [(16.0, reply)], windows)
    assert broken == bool(found)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_requests_are_said_to_be_too_few(count: int) -> None:
    """Of one request there is no quantile."""
    reply = Reply(Ask("/", {}), status=200, ends=1)
    row, broken = class_row("short", [(1.0, reply)] * count, [])
    assert "too few" in row
    assert not broken


def test_too_few_looks_are_said_to_be_too_few() -> None:
    """Of a run that is shorter than the warm-up there is no slope, and that is said."""
    command = [sys.executable, "-S", "-c", ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        watch = MemoryWatch(Patient(process, deque(), "key"))
        assert "too few" in watch.slope()
        assert "never looked at" == watch.summary()
