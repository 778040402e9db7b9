"""The engine process: how it starts, how it ends, and who is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import psutil
import pytest

from mlx_pharos.engine.client import EngineClient, EngineState, start_engine
from mlx_pharos.engine.protocol import ChatMessage, ChatPrompt, Delta, TextPrompt
from mlx_pharos.engine.supervisor import EngineProcess
from mlx_pharos.resilience.errors import (
    DrainingError,
    EngineDiedError,
    EngineUnavailableError,
    MemoryShortError,
)
from mlx_pharos.resilience.restarts import RestartPolicy
from support.client import wait_until
from support.dangerous_model import STARVES, add_starving_template
from support.engine import GREEDY, collect, engine_options, generate, wait_until_idle
from support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LONG = 1_000_000


@pytest.fixture
def own_engine(tiny_model: Path) -> Iterator[EngineClient]:
    """An engine that the test may kill, and that stays dead."""
    client = start_engine(
        engine_options(tiny_model, max_batch=2),
        max_batch=2,
        max_queue=6,
        restarts=RestartPolicy(limit=0),
    )
    assert client.wait_ready(15), client.down_reason
    yield client
    client.close()


def test_killed_engine_ends_every_request(own_engine: EngineClient) -> None:
    """Running or waiting: no request hangs, what came before is kept, new ones are refused."""
    running = own_engine.submit(TextPrompt("running"), GREEDY, max_tokens=_LONG)
    collect(running, until=3)
    waiting = [
        own_engine.submit(TextPrompt(f"waiting {index}"), GREEDY, max_tokens=_LONG)
        for index in range(4)
    ]
    os.kill(own_engine.pid, signal.SIGKILL)
    for generation in (running, *waiting):
        with pytest.raises(EngineDiedError):
            collect(generation)
    assert EngineState.DOWN is own_engine.state
    assert "SIGKILL" in own_engine.down_reason
    wait_until(lambda: own_engine.in_flight == 0)
    assert 0 == own_engine.snapshot().running
    with pytest.raises(EngineUnavailableError) as caught:
        own_engine.submit(TextPrompt("late"), GREEDY)
    assert caught.value.retry_after


@pytest.fixture
def restarted_engine(tiny_model: Path) -> Iterator[EngineClient]:
    """An engine that is started again at once, twice in the time of a test."""
    client = start_engine(
        engine_options(tiny_model, max_batch=2),
        max_batch=2,
        max_queue=6,
        restarts=RestartPolicy(limit=2, first_delay_seconds=0.01),
    )
    assert client.wait_ready(15), client.down_reason
    yield client
    client.close()


def _kill(engine: EngineClient) -> None:
    """Kill the process and wait until the server knows."""
    os.kill(engine.pid, signal.SIGKILL)
    wait_until(lambda: engine.state is not EngineState.READY)


def test_dead_engine_is_replaced(restarted_engine: EngineClient) -> None:
    """After each death another process serves, and nothing of the old one is left."""
    text = generate(restarted_engine, "same text").text()
    for deaths in (1, 2):
        _kill(restarted_engine)
        assert restarted_engine.wait_ready(15), restarted_engine.down_reason
        assert text == generate(restarted_engine, "same text").text()
        wait_until_idle(restarted_engine)
        assert deaths == restarted_engine.restarts
        assert "SIGKILL" == restarted_engine.last_ending


def _most_at_once(engine: EngineClient) -> int:
    """Ask for two answers; return how many sequences were seen to run together."""
    both = [
        engine.submit(TextPrompt(f"request {index}"), GREEDY, max_tokens=60) for index in range(2)
    ]
    most = 0
    for generation in both:
        collect(generation, until=1)
        most = max(most, engine.snapshot().running)
        collect(generation)
    return most


def test_engine_after_a_crash_does_less_at_once(restarted_engine: EngineClient) -> None:
    """Half of the batch: too much at once may be why the other died."""
    _kill(restarted_engine)
    assert restarted_engine.wait_ready(15), restarted_engine.down_reason
    assert 1 == _most_at_once(restarted_engine)


def test_engine_that_gets_no_memory_is_replaced(tmp_path: Path) -> None:
    """Requests that cannot even be tokenized are refused for now, and after some another serves,
    which does less at once.
    """
    model = write_tiny_model(tmp_path / "model")
    add_starving_template(model)
    options = engine_options(model, max_batch=2)
    huge, small = (ChatPrompt((ChatMessage("user", text),)) for text in (STARVES, "small"))
    engine = start_engine(options, max_batch=2, max_queue=6, restarts=RestartPolicy(limit=2))
    try:
        assert engine.wait_ready(15), engine.down_reason
        for _ in range(3):
            with pytest.raises(MemoryShortError):
                generate(engine, huge)
        wait_until(lambda: engine.restarts == 1)
        assert "out_of_memory" == engine.last_ending
        assert engine.wait_ready(15), engine.down_reason
        assert generate(engine, small).tokens()
        assert 1 == _most_at_once(engine)
    finally:
        engine.close()


def test_engine_that_dies_too_often_stays_down(restarted_engine: EngineClient) -> None:
    """The third death within the window is the last one, and everybody can know."""
    for _ in range(2):
        _kill(restarted_engine)
        assert restarted_engine.wait_ready(15), restarted_engine.down_reason
    assert not restarted_engine.wait_gone(0)
    _kill(restarted_engine)
    assert restarted_engine.wait_gone(10)
    assert EngineState.DOWN is restarted_engine.state
    assert "SIGKILL" in restarted_engine.down_reason
    assert "2 times" in restarted_engine.down_reason
    with pytest.raises(EngineUnavailableError, match="not started again"):
        restarted_engine.submit(TextPrompt("late"), GREEDY)


def test_request_of_a_client_that_leaves_while_the_engine_is_down_frees_its_places(
    tiny_model: Path,
) -> None:
    """No engine has to end it, and the next one never sees it."""
    client = start_engine(
        engine_options(tiny_model),
        max_batch=1,
        max_queue=1,
        restarts=RestartPolicy(first_delay_seconds=1000, longest_delay_seconds=1000),
    )
    assert client.wait_ready(15), client.down_reason
    with client.submit(TextPrompt("left"), GREEDY, max_tokens=_LONG) as generation:
        collect(generation, until=1)
        _kill(client)
        assert 1 == client.in_flight
    wait_until(lambda: client.in_flight == 0)
    client.close()


def test_close_while_the_next_engine_is_awaited(tiny_model: Path) -> None:
    """Shutting down does not wait for a restart, and leaves no process."""
    client = start_engine(
        engine_options(tiny_model),
        max_batch=1,
        max_queue=1,
        restarts=RestartPolicy(first_delay_seconds=1000, longest_delay_seconds=1000),
    )
    assert client.wait_ready(15), client.down_reason
    _kill(client)
    client.close()
    assert (EngineState.STOPPED, True) == (client.state, client.wait_gone(0))
    assert not psutil.pid_exists(client.pid)


def test_text_that_came_before_the_death_is_handed_out(own_engine: EngineClient) -> None:
    """The error comes after the events, never instead of them."""
    generation = own_engine.submit(TextPrompt("before"), GREEDY, max_tokens=20)
    wait_until_idle(own_engine)
    os.kill(own_engine.pid, signal.SIGKILL)
    assert 20 == sum(isinstance(event, Delta) for event in collect(generation).events)


def test_draining_refuses_new_work_and_lets_the_old_finish(own_engine: EngineClient) -> None:
    """What was accepted ends as it would have."""
    with own_engine.submit(TextPrompt("old"), GREEDY, max_tokens=50) as old:
        own_engine.drain()
        with pytest.raises(DrainingError):
            own_engine.submit(TextPrompt("new"), GREEDY)
        assert 50 == collect(old).finishes[0].completion_tokens


def test_close_ends_the_process_and_its_requests(own_engine: EngineClient) -> None:
    """A request that still runs is told; the process is gone when close returns."""
    generation = own_engine.submit(TextPrompt("cut"), GREEDY, max_tokens=_LONG)
    collect(generation, until=1)
    own_engine.close()
    with pytest.raises(EngineDiedError):
        collect(generation)
    assert EngineState.STOPPED is own_engine.state
    assert not psutil.pid_exists(own_engine.pid)


@pytest.mark.parametrize("at_work", [False, True])
def test_a_closed_engine_ends_in_order(tiny_model: Path, *, at_work: bool) -> None:
    """By itself and with exit code 0, also in the middle of an answer: MLX's threads do not abort it."""
    process = EngineProcess()
    engine = start_engine(engine_options(tiny_model), max_batch=1, max_queue=1, process=process)
    assert engine.wait_ready(15), engine.down_reason
    generation = engine.submit(TextPrompt("last"), GREEDY, max_tokens=_LONG if at_work else 3)
    collect(generation, until=1 if at_work else None)
    engine.close()
    assert "exit code 0" == process.describe_end()


def test_signals_of_the_terminal_do_not_end_the_engine(own_engine: EngineClient) -> None:
    """Neither Ctrl-C nor writing to it from the background: the server decides when the engine ends."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGTTOU):
        os.kill(own_engine.pid, each)
    assert generate(own_engine, "still here", max_tokens=3).finishes


def test_the_engine_gives_way_to_the_server(own_engine: EngineClient) -> None:
    """It is nicer in all its threads, and shares the server's session, in which that counts."""
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    each = [own_engine.pid]
    if sys.platform == "linux":  # where it is a thread's, and elsewhere the process'
        each += [thread.id for thread in psutil.Process(own_engine.pid).threads()]
    assert {min(ours + 3, 19)} == {os.getpriority(os.PRIO_PROCESS, one) for one in each}
    assert os.getsid(0) == os.getsid(own_engine.pid)
    assert os.getpgid(0) != os.getpgid(own_engine.pid)


def test_model_that_cannot_be_loaded_is_explained(tmp_path: Path) -> None:
    """The operator reads why, and nobody waits for ever."""
    client = start_engine(engine_options(tmp_path), max_batch=1, max_queue=1)
    assert not client.wait_ready(15)
    assert EngineState.DOWN is client.state
    assert "config.json" in client.down_reason
    client.close()


def test_engine_that_is_not_ready_ends_with_its_server() -> None:
    """A load of minutes must not outlive the server that wanted it."""
    process = EngineProcess()
    engine = psutil.Process(process.pid)
    process.connection.close()
    engine.wait(5)
    process.discard()


def test_settings_are_not_the_engines_business(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys in our variables do not reach a process that may run a model's own code."""
    monkeypatch.setenv("PHAROS_API_KEY", "secret")
    process = EngineProcess()
    assert "PHAROS_API_KEY" not in psutil.Process(process.pid).environ()
    process.discard()


def test_killed_server_leaves_no_engine_behind(tiny_model: Path) -> None:
    """The engine ends when its pipe closes, also in the middle of work."""
    server = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from mlx_pharos.engine.client import start_engine
        from mlx_pharos.engine.protocol import TextPrompt
        from support.engine import GREEDY, collect, engine_options

        client = start_engine(engine_options(Path(sys.argv[1])), max_batch=1, max_queue=1)
        client.wait_ready(15)
        generation = client.submit(TextPrompt("work"), GREEDY, max_tokens=1_000_000)
        collect(generation, until=1)
        print(client.pid, flush=True)
        sys.stdin.read()
        """
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", server, str(tiny_model)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdout is not None
        engine = psutil.Process(int(process.stdout.readline()))
        process.kill()
        process.wait()
    engine.wait(5)
