"""Faults of the engine: it is killed, it crashes, it hangs, a request kills it."""

from __future__ import annotations

import resource
import signal
from typing import TYPE_CHECKING

import psutil
import pytest

from support.asks import Ask
from support.dangerous_model import KILLS, SEGFAULTS, SLEEPS
from support.planted import planted
from support.step_sizes import judge_growth, judge_half

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.examination import Examination
    from support.patient import Patient

_NARROW = ("--max-batch", "4", "--max-queue", "28")
_DANGEROUS = (*_NARROW, "--trust-remote-code")
_SIZE_MATTERS = {"SIGSEGV", "SIGABRT", "SIGBUS", "out_of_memory"}
"""How an engine ends where it gets no memory: MLX by a signal, all else by its own decision."""


@pytest.mark.parametrize(
    "after",
    [
        pytest.param(0, marks=pytest.mark.battery, id="prefill"),
        pytest.param(60, id="decode"),
        pytest.param(400, marks=pytest.mark.battery, id="late"),
    ],
)
def test_killed_at_work(
    tiny_model: Path, examine: Callable[[Patient], Examination], after: int
) -> None:
    """SIGKILL in prefill, in decode and near the end, with a queue behind the batch."""
    with planted(tiny_model, *_NARROW) as server:
        examination = examine(server)
        asks = examination.draw(16)
        with examination.load(asks, held=True) as load:
            load.wait_for_text(after)
            server.engine.kill()
        examination.judge(load)


@pytest.mark.battery
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_crashed(
    tiny_model: Path, examine: Callable[[Patient], Examination], number: signal.Signals
) -> None:
    """What MLX does to its process where memory or a driver fails it."""
    with planted(tiny_model, *_NARROW) as server:
        examination = examine(server)
        asks = examination.draw(12)
        with examination.load(asks, held=True) as load:
            load.wait_for_text(80)
            server.engine.send_signal(number)
        examination.judge(load)
        assert number.name == server.health()["engine"]["last_reason"]


@pytest.mark.battery
def test_killed_twice(tiny_model: Path, examine: Callable[[Patient], Examination]) -> None:
    """The engine that took over is killed too, as soon as it has said something."""
    with planted(tiny_model, *_NARROW) as server:
        examination = examine(server)
        asks = examination.draw(12, tokens=300)
        with examination.load(asks, held=True) as load:
            load.wait_for_text(60)
            first = server.engine
            first.kill()
            server.wait_for(lambda: server.health()["engine"]["restarts"] == 1, "a restart")
            server.wait_ready()
            load.wait_for_text(load.characters + 20)
            server.engine.kill()
        examination.judge(load)
        assert 2 == server.total("pharos_engine_restarts_total")


@pytest.mark.battery
def test_killed_with_no_file_left(
    tiny_model: Path, examine: Callable[[Patient], Examination]
) -> None:
    """No descriptor is left for another engine at first: it is started as soon as there is one."""
    with planted(tiny_model, *_NARROW) as server:
        examination = examine(server)
        asks = examination.draw(10, tokens=400)
        process = psutil.Process(server.pid)
        before = process.rlimit(resource.RLIMIT_NOFILE)
        with examination.load(asks, probe=False, held=True) as load:
            load.wait_for_text(20)
            process.rlimit(resource.RLIMIT_NOFILE, (3, before[1]))
            server.engine.kill()
            server.wait_for(
                lambda: any("cannot be started again yet" in line for line in server.log),
                "an attempt to start another engine",
            )
            process.rlimit(resource.RLIMIT_NOFILE, before)
        examination.judge(load)
        assert 1 == server.total("pharos_engine_restarts_total")


@pytest.mark.battery
def test_stopped(tiny_model: Path, examine: Callable[[Patient], Examination]) -> None:
    """SIGSTOP: it neither ends nor makes progress, and is taken for dead."""
    with planted(tiny_model, *_NARROW, "--hang-timeout", "2") as server:
        examination = examine(server)
        asks = examination.draw(12)
        with examination.load(asks, held=True) as load:
            load.wait_for_text(60)
            server.engine.suspend()
        examination.judge(load)
        assert "hang" == server.health()["engine"]["last_reason"]


@pytest.mark.battery
@pytest.mark.parametrize("what", [KILLS, SEGFAULTS, SLEEPS], ids=["kills", "crashes", "hangs"])
def test_one_request_is_deadly(
    dangerous_model: Path, examine: Callable[[Patient], Examination], what: str
) -> None:
    """One that kills, crashes or stops each engine ends with an error, and takes nobody along."""
    with planted(dangerous_model, *_DANGEROUS, "--hang-timeout", "2") as server:
        examination = examine(server)
        asks = examination.draw(7)
        message = {"role": "user", "content": f"good morning {what}"}
        killer = Ask("/v1/chat/completions", {"model": "tiny", "messages": [message]})
        with examination.load([*asks, killer], held=True) as load:
            pass
        examination.judge(load, whole=False)
        *innocent, guilty = load.replies
        assert all(reply.whole for reply in innocent)
        assert (503, "engine_died") == (guilty.status, guilty.error)


@pytest.mark.battery
def test_out_of_memory(tiny_model: Path, examine: Callable[[Patient], Examination]) -> None:
    """The kernel gives the engine no more memory: whatever MLX does then, the answers are whole.

    Where it dies of that, the next one does half at once, and grows back.
    """
    with planted(tiny_model, *_NARROW) as server:
        examination = examine(server)
        asks = examination.draw(12, tokens=500)
        with examination.load(asks, held=True) as load:
            load.wait_for_text(20)
            used = server.engine.memory_info().vms
            server.engine.rlimit(resource.RLIMIT_AS, (used, resource.RLIM_INFINITY))
            server.wait_for(
                lambda: load.is_over or server.health()["engine"]["restarts"] > 0,
                "a death, or none",
            )
            died = server.health()["engine"]["last_reason"] in _SIZE_MATTERS
            if died:
                judge_half(examination, load, half=2)
        if died:
            judge_growth(examination, load, asks[:6], half=2)
        examination.judge(load)
