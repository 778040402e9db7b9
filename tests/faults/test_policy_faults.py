"""Faults that last: engine after engine dies, the prompt cache breaks again and again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from support.asks import CHAT, Ask
from support.dangerous_model import BREAKS_CACHE
from support.examination import Load
from support.planted import planted
from support.step_sizes import judge_growth, judge_half

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.examination import Examination
    from support.patient import Patient

_NARROW = ("--max-batch", "4", "--max-queue", "28")

pytestmark = pytest.mark.battery


def _kill_again(server: Patient, load: Load, *, restarts: int) -> None:
    """Kill an engine that has taken over, as soon as it has said something."""
    server.wait_restarted(restarts)
    server.wait_ready()
    load.wait_for_text(load.characters + 20)
    server.engine.kill()


def test_smaller_after_a_death_and_back(
    tiny_model: Path, examine: Callable[[Patient], Examination]
) -> None:
    """The engine after one that was killed does half at once, and all of it half a minute later."""
    with planted(tiny_model, "--max-batch", "8", "--max-queue", "24") as server:
        examination = examine(server)
        asks = examination.draw(14)
        assert server.steps_above(4)
        with examination.load(asks, held=True) as load:
            load.wait_for_text(60)
            server.engine.kill()
            server.wait_restarted(1)
            judge_half(examination, load, half=4)
        judge_growth(examination, load, asks[:8], half=4)
        examination.judge(load)


def test_dies_too_often_and_exits(
    tiny_model: Path, examine: Callable[[Patient], Examination]
) -> None:
    """One death more than are allowed: all requests end in words, and the exit code is 1."""
    with planted(tiny_model, *_NARROW, "--restart-limit", "1") as server:
        examination = examine(server)
        asks = examination.draw(12)
        with examination.load(asks, probe=False, held=True) as load:
            load.wait_for_text(40)
            server.engine.kill()
            _kill_again(server, load, restarts=1)
            assert 1 == server.wait(30)
        examination.judge_end(load, whole=False)
        assert {"engine_died"} == {reply.error for reply in load.replies if not reply.whole}


def test_dies_too_often_and_stays(
    tiny_model: Path, examine: Callable[[Patient], Examination]
) -> None:
    """Told to stay, the server is alive, is not ready, and refuses what comes."""
    flags = ("--restart-limit", "1", "--without-engine", "stay")
    with planted(tiny_model, *_NARROW, *flags) as server:
        examination = examine(server)
        asks = examination.draw(12)
        with examination.load(asks, held=True) as load:
            load.wait_for_text(40)
            server.engine.kill()
            _kill_again(server, load, restarts=1)
        assert {"engine_died"} == {reply.error for reply in load.replies if not reply.whole}
        examination.judge_without_engine(load)


def test_deaths_that_are_long_ago(
    tiny_model: Path, examine: Callable[[Patient], Examination]
) -> None:
    """A death that is longer ago than the window counts no more: another engine is started."""
    window = 1.0
    flags = ("--restart-limit", "1", "--restart-window", str(window))
    with planted(tiny_model, *_NARROW, *flags) as server:
        examination = examine(server)
        asks = examination.draw(8)
        load = Load([])
        for deaths in (1, 2):
            with examination.load(asks, held=True) as one:
                one.wait_for_text(40)
                server.engine.kill()
            load.clients += one.clients
            server.wait_restarted(deaths)
            time.sleep(window)  # it has to pass
        examination.judge(load)


def test_the_prompt_cache_breaks(
    dangerous_model: Path, examine: Callable[[Patient], Examination]
) -> None:
    """Five errors switch it off, ten requests and a probe on again; every text is the true one."""
    flags = ("--max-batch", "4", "--max-queue", "76", "--trust-remote-code")
    with planted(dangerous_model, *flags) as server:
        examination = examine(server)
        asks = [ask for ask in examination.draw(36, tokens=40) if ask.path == CHAT]
        message = {"role": "user", "content": f"good morning {BREAKS_CACHE}"}
        breaks = Ask(CHAT, {"model": "tiny", "messages": [message], "max_tokens": 4})
        with examination.load([breaks]) as load:
            pass
        states = []
        for ask in asks[:16]:
            with examination.load([ask]) as one:
                pass
            load.clients += one.clients
            states.append(server.health()["cache"]["breaker"])
        assert ["closed"] * 4 + ["open"] * 10 + ["half_open", "closed"] == states
        with examination.load(asks) as many:
            pass
        load.clients += many.clients
        examination.judge(load)
        cache = server.health()["cache"]
        assert ("closed", 5) == (cache["breaker"], cache["errors"])
        _judge_breaker(server)


def _judge_breaker(server: Patient) -> None:
    """The metrics say the same as health does."""
    figures = server.figures()

    def labelled(name: str, label: str) -> dict[str, float]:
        prefix = f'{name}{{name="prompt_cache",{label}="'
        return {
            sample.removeprefix(prefix).removesuffix('"}'): value
            for sample, value in figures.items()
            if sample.startswith(prefix)
        }

    assert {"closed": 1, "open": 0, "half_open": 0} == labelled("pharos_breaker_state", "state")
    assert {"closed": 1, "open": 1, "half_open": 1} == labelled(
        "pharos_breaker_transitions_total", "to"
    )
