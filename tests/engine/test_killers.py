"""Requests that kill or stop every engine that works on them, among others that do not."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from mlx_pharos.engine.client import EngineClient, start_engine
from mlx_pharos.engine.engine_state import Endurance, EngineState
from mlx_pharos.engine.protocol import TextPrompt
from mlx_pharos.resilience.errors import EngineDiedError
from mlx_pharos.resilience.restarts import RestartPolicy
from support.client import wait_until
from support.dangerous_model import (
    KILLS,
    LOCKS_UP,
    SEGFAULTS,
    SLEEPS,
    SLOWS,
    write_dangerous_model,
)
from support.engine import GREEDY, collect, engine_options, generate, wait_until_idle

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_INNOCENTS = 3
_HANG_SECONDS = 4.0


@pytest.fixture(scope="module")
def dangerous_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that some characters kill."""
    return write_dangerous_model(tmp_path_factory.mktemp("models") / "dangerous")


@contextlib.contextmanager
def _running(model: Path, *, limit: int = 3, **endurance: Any) -> Iterator[EngineClient]:
    client = start_engine(
        engine_options(model, trust_remote_code=True, prefill_step=64),
        max_batch=8,
        max_queue=8,
        restarts=RestartPolicy(limit=limit, first_delay_seconds=0.01, longest_delay_seconds=0.01),
        endurance=Endurance(**endurance),
    )
    try:
        assert client.wait_ready(15), client.down_reason
        yield client
    finally:
        client.close()


@pytest.fixture
def strict(dangerous_model: Path) -> Iterator[EngineClient]:
    """An engine whose requests may be in one death, so that a killer is found with two."""
    with _running(dangerous_model, crash_budget=1) as client:
        yield client


@pytest.fixture(scope="module")
def watched(dangerous_model: Path) -> Iterator[EngineClient]:
    """An engine that is soon taken for hung, and started again as often as it is."""
    with _running(dangerous_model, limit=50, hang_seconds=_HANG_SECONDS) as client:
        yield client


class _Stream(threading.Thread):
    """An innocent request that runs beside a killer."""

    def __init__(self, engine: EngineClient, number: int) -> None:
        super().__init__()
        self._generation = engine.submit(TextPrompt(f"innocent {number}"), GREEDY, max_tokens=400)
        self.text = ""
        self.start()

    def run(self) -> None:
        """Collect the whole answer."""
        self.text = collect(self._generation).text()


def _streams(engine: EngineClient) -> list[_Stream]:
    streams = [_Stream(engine, number) for number in range(_INNOCENTS)]
    wait_until(lambda: engine.snapshot().running > 0)
    return streams


def _texts(streams: list[_Stream]) -> list[str]:
    for stream in streams:
        stream.join(18)
        assert not stream.is_alive()
    return [stream.text for stream in streams]


def test_a_request_that_kills_every_engine_ends_alone(strict: EngineClient) -> None:
    """It gets an error, the others their whole text, and the engine is there for the next."""
    expected = _texts(_streams(strict))
    streams = _streams(strict)
    with pytest.raises(EngineDiedError, match="2 times"):
        generate(strict, f"die {SEGFAULTS}")
    assert expected == _texts(streams)
    assert (2, "SIGSEGV") == (strict.restarts, strict.last_ending)
    assert generate(strict, "afterwards", max_tokens=3).finishes
    wait_until_idle(strict)


def test_a_request_that_killed_engines_is_not_tried_again_at_once(dangerous_model: Path) -> None:
    """Its client sends it once more, as clients do: that costs no engine, and nobody else his."""
    with _running(dangerous_model, limit=2, crash_budget=1) as engine:
        with pytest.raises(EngineDiedError, match="2 times") as first:
            generate(engine, f"die {KILLS}")
        assert engine.wait_ready(15), engine.down_reason
        for _ in range(3):
            with pytest.raises(EngineDiedError, match="not tried again") as again:
                generate(engine, f"die {KILLS}")
        assert 50 < (again.value.retry_after or 0) <= (first.value.retry_after or 0) == 60
        assert engine.restarts == 2
        # Its deaths have a cause that is dealt with: an accident may still happen.
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: engine.restarts == 3)
        assert engine.wait_ready(15), engine.down_reason
        assert generate(engine, "afterwards", max_tokens=3).finishes


def test_a_step_that_never_returns_is_a_death(watched: EngineClient) -> None:
    """The engine is killed when it was silent for too long, and the others go on."""
    before = watched.restarts
    stream = _Stream(watched, 0)
    with watched.submit(TextPrompt(f"stop {SLEEPS}"), GREEDY, max_tokens=5):
        wait_until(lambda: watched.restarts == before + 1, 15)
        assert "hang" == watched.last_ending
    assert _texts([stream])[0]
    assert watched.wait_ready(15)


def test_a_stopped_engine_is_a_death(watched: EngineClient) -> None:
    """SIGSTOP, with nothing to do at first: the first request after it notices, and is served."""
    before = watched.restarts
    os.kill(watched.pid, signal.SIGSTOP)
    assert generate(watched, "hello?", max_tokens=20).text()
    assert (before + 1, "hang") == (watched.restarts, watched.last_ending)


def test_an_engine_that_stops_while_it_loads_again_is_a_death(dangerous_model: Path) -> None:
    """Its limit is what the first load took, not an hour; who waits for it is served by the next."""
    endurance = {"hang_seconds": 2.0, "reload_margin": 1.5, "reload_seconds": 2.0}
    with (
        _running(dangerous_model, limit=50, **endurance) as engine,
        engine.submit(TextPrompt("held"), GREEDY, max_tokens=20) as held,
    ):
        first = engine.pid
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: engine.pid != first)
        os.kill(engine.pid, signal.SIGSTOP)
        wait_until(lambda: engine.restarts >= 2, 30)
        assert "hang" == engine.last_ending
        assert engine.wait_ready(15), engine.down_reason
        assert 20 == collect(held).finishes[0].completion_tokens


def test_a_first_load_has_a_limit(dangerous_model: Path) -> None:
    """An engine that stops before it ever served is killed, and nobody waits for another."""
    engine = start_engine(
        engine_options(dangerous_model),
        max_batch=1,
        max_queue=1,
        endurance=Endurance(load_seconds=1.0),
    )
    try:
        os.kill(engine.pid, signal.SIGSTOP)
        assert engine.wait_gone(15)
        assert (EngineState.DOWN, "hang") == (engine.state, engine.last_ending)
    finally:
        engine.close()


def test_a_slow_prefill_is_no_hang(watched: EngineClient) -> None:
    """Much longer than the limit in all, but each chunk is progress."""
    before = watched.restarts
    chunks = 1 + int(1.5 * _HANG_SECONDS / 0.3)
    answer = generate(watched, TextPrompt(SLOWS * 64 * chunks), max_tokens=1)
    assert chunks <= len(answer.progress)  # more where an engine died before: it began smaller
    assert before == watched.restarts


def test_an_engine_in_an_endless_step_ends_with_its_server(dangerous_model: Path) -> None:
    """Also when the step never lets go of Python's lock."""
    server = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from mlx_pharos.engine.client import start_engine
        from mlx_pharos.engine.flight import Stage
        from mlx_pharos.engine.protocol import TextPrompt
        from support.client import wait_until
        from support.engine import GREEDY, engine_options

        options = engine_options(Path(sys.argv[1]), trust_remote_code=True)
        client = start_engine(options, max_batch=1, max_queue=1)
        client.wait_ready(15)
        generation = client.submit(TextPrompt(sys.argv[2]), GREEDY, max_tokens=2)
        flight = client._in_flight.get(generation.id)
        wait_until(lambda: flight.stage is Stage.RUNNING)
        print(client.pid, flush=True)
        sys.stdin.read()
        """
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", server, str(dangerous_model), f"x{LOCKS_UP}x"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdout is not None
        engine = psutil.Process(int(process.stdout.readline()))
        process.kill()
        process.wait()
    engine.wait(5)
