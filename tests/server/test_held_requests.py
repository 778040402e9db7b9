"""While the engine is down: what is held, what is refused, what is told, and how it ends."""

from __future__ import annotations

import http.client
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from mlx_pharos.engine.client import EngineState
from mlx_pharos.resilience.restarts import RestartPolicy
from support.client import CHAT, RunningServer, chat_body, wait_until
from support.served import serve_model

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def down(tiny_model: Path, serving: Callable[..., Any]) -> Iterator[RunningServer]:
    """A server whose engine will come back, but not in the time of a test."""
    patient = RestartPolicy(first_delay_seconds=1000, longest_delay_seconds=1000)
    with serving(
        tiny_model, max_batch=2, max_queue=2, restarts=patient, keep_alive_seconds=0.05
    ) as server:
        yield server


def _stream_and_kill(server: RunningServer) -> socket.socket:
    """Let a stream begin, and kill the engine under it."""
    stream = server.send(CHAT, **chat_body(stream=True, max_tokens=8000))
    received = b""
    while received.count(b"data: ") < 5:
        received += stream.recv(65536)
    os.kill(server.engine.pid, signal.SIGKILL)
    wait_until(lambda: server.engine.state is EngineState.DOWN)
    return stream


def _read_until(stream: socket.socket, wanted: bytes) -> bytes:
    received = b""
    while wanted not in received:
        chunk = stream.recv(65536)
        assert chunk, received
        received += chunk
    return received


def test_held_streams_are_kept_alive_and_new_requests_are_refused(down: RunningServer) -> None:
    """The stream gets comments; the server is alive, not ready, says so, and tells when to come
    back; a client that leaves frees its place.
    """
    with _stream_and_kill(down) as stream:
        _read_until(stream, b"\n:")
        assert 200 == down.get("/livez").status
        assert 503 == down.get("/readyz").status
        refused = down.chat()
        assert (503, "engine_unavailable") == (refused.status, refused.error["code"])
        assert refused.headers["Retry-After"]
        health = down.get("/health").json
        assert ("down", 1, "SIGKILL") == (
            health["status"],
            health["waiting"],
            health["engine"]["last_reason"],
        )
        assert 1 == down.engine.in_flight
    down.wait_idle()


def test_the_grace_period_goes_on_for_held_requests(down: RunningServer) -> None:
    """When the time to finish is over, a held stream ends with an error and ``[DONE]``."""
    with _stream_and_kill(down) as stream:
        down.listener.stop()
        wait_until(lambda: down.shutdown.draining)
        down.listener.stop()
        rest = _read_until(stream, b"[DONE]\n\n")
        assert b'"shutdown"' in rest


def _kill_engine_of(server: int) -> None:
    (engine,) = psutil.Process(server).children()
    engine.kill()


def test_a_server_without_an_engine_ends_with_an_error(tiny_model: Path) -> None:
    """By default, so that a service manager sees it: exit code 1."""
    with serve_model(tiny_model, "--restart-limit", "0", exit_code=1) as served:
        server = psutil.Process(served.pid)
        _kill_engine_of(served.pid)
        wait_until(lambda: server.status() == psutil.STATUS_ZOMBIE, 15)


def test_a_server_without_an_engine_may_stay(tiny_model: Path) -> None:
    """It is alive and not ready, refuses with a reason, and ends like any other."""
    flags = ("--restart-limit", "0", "--without-engine", "stay")
    with serve_model(tiny_model, *flags) as served:
        _kill_engine_of(served.pid)
        wait_until(lambda: _ask(served.address, "/readyz")[0] == 503, 15)
        wait_until(lambda: b"not started again" in _ask(served.address, CHAT, chat_body())[1])
        assert 503 == _ask(served.address, CHAT, chat_body())[0]
        assert 200 == _ask(served.address, "/livez")[0]


def _ask(address: str, path: str, body: object = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        data = None if body is None else json.dumps(body).encode()
        method = "GET" if body is None else "POST"
        connection.request(method, path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
