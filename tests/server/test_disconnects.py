"""A client that leaves frees what the engine holds for it, wherever its request is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.client import CHAT, COMPLETIONS, chat_body, wait_until
from support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.client import RunningServer

SOON = 2.0
"""Seconds: a poll, a chunk or a token, and a slow machine."""


@pytest.fixture(scope="module")
def lone(
    tmp_path_factory: pytest.TempPathFactory, serving: Callable[..., Any]
) -> Iterator[RunningServer]:
    """A server that runs one sequence at a time and has a long context window."""
    model: Path = write_tiny_model(tmp_path_factory.mktemp("long"), context_length=65536)
    with serving(model, max_batch=1, max_queue=4) as running:
        yield running


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_in_decode(lone: RunningServer, stream: bool) -> None:
    """An answer of tens of thousands of tokens ends with the connection."""
    connection = lone.send(CHAT, **chat_body(max_tokens=60_000, stream=stream))
    if stream:
        assert connection.recv(65536)
    wait_until(lambda: lone.engine.snapshot().running == 1)
    connection.close()

    assert lone.wait_idle() < SOON


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_in_prefill(lone: RunningServer, stream: bool) -> None:
    """A prompt of tens of thousands of tokens is not read to its end for nobody."""
    prompt = "".join(chr(32 + (i * 7 + i // 90) % 90) for i in range(60_000))
    connection = lone.send(COMPLETIONS, model="tiny", prompt=prompt, stream=stream, max_tokens=4)
    wait_until(lambda: lone.engine.snapshot().running == 1)
    connection.close()

    assert lone.wait_idle() < SOON


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_in_the_queue(lone: RunningServer, stream: bool) -> None:
    """Its place is free for others while the request before it still runs."""
    running = lone.send(CHAT, **chat_body(max_tokens=60_000, stream=True))
    assert running.recv(65536)
    waiting = lone.send(CHAT, **chat_body(stream=stream))
    wait_until(lambda: lone.engine.in_flight == 2)
    waiting.close()
    wait_until(lambda: lone.engine.in_flight == 1, SOON)
    running.close()

    assert lone.wait_idle() < SOON


def test_leaving_frees_every_choice_of_every_prompt(server: RunningServer) -> None:
    """Two prompts with two answers each are four sequences, and all of them end."""
    fields: dict[str, Any] = {"model": "tiny", "prompt": ["a", "b"], "n": 2, "max_tokens": 8000}
    connection = server.send(COMPLETIONS, **fields, stream=True)
    assert connection.recv(65536)
    wait_until(lambda: server.engine.in_flight == 4)
    connection.close()

    assert server.wait_idle() < SOON


def cancelled(server: RunningServer) -> int:
    """Return how many requests the metrics count as cancelled."""
    lines = server.get("/metrics").body.decode().splitlines()
    return sum(
        int(float(line.rpartition(" ")[2]))
        for line in lines
        if line.startswith("pharos_requests_finished_total") and '="cancelled"' in line
    )


def test_fifty_clients_that_vanish_in_each_place_leave_nothing_and_are_counted(
    tmp_path: Path, serving: Callable[..., Any]
) -> None:
    """In prefill, in decode and in the queue: every place is free, and the count is exact."""
    model = write_tiny_model(tmp_path / "long", context_length=16384)
    prompt = "".join(chr(32 + (i * 7 + i // 90) % 90) for i in range(12_000))
    with serving(model, max_batch=50, max_queue=60) as server:
        for fields in ({"prompt": prompt}, {"prompt": "short", "max_tokens": 12_000}):
            gone = [server.send(COMPLETIONS, model="tiny", **fields) for _ in range(50)]
            wait_until(lambda: server.engine.in_flight == 50)
            for connection in gone:
                connection.close()
            server.wait_idle()
        running = [
            server.send(COMPLETIONS, model="tiny", prompt=f"{i}", max_tokens=12_000)
            for i in range(50)
        ]
        wait_until(lambda: server.engine.in_flight == 50)
        waiting = [server.send(COMPLETIONS, model="tiny", prompt="x") for _ in range(50)]
        wait_until(lambda: server.engine.in_flight == 100)
        for connection in waiting:
            connection.close()
        wait_until(lambda: server.engine.in_flight == 50)
        for connection in running:
            connection.close()
        server.wait_idle()
        wait_until(lambda: cancelled(server) == 200)
        assert 200 == server.post(COMPLETIONS, {"model": "tiny", "prompt": "x"}).status
        assert 200 == cancelled(server)
