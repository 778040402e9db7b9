"""Faults of clients that vanish, fifty in each place where a request can be."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest

from support.asks import CHAT, NO_END
from support.dangerous_model import SLOWS
from support.planted import planted
from support.raw_http import request_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.examination import Examination, Load
    from support.patient import Patient

pytestmark = pytest.mark.battery

_COUNT = 50
_RESET = struct.pack("ii", 1, 0)
"""Of SO_LINGER: closing sends a reset."""
_FLAGS = ("--trust-remote-code", "--max-batch", "64", "--max-queue", "64", "--prefill-step", "64")


@contextlib.contextmanager
def _vanishing(server: Patient, content: str, max_tokens: int) -> Iterator[list[socket.socket]]:
    """Send fifty requests, half of them streams; the clients vanish at the end of the block, half
    of them without a word.
    """
    with contextlib.ExitStack() as stack:
        held = []
        for number in range(_COUNT):
            body: dict[str, Any] = {
                "model": "tiny",
                "messages": [{"role": "user", "content": content}],
                "max_tokens": max_tokens,
                "stream": number % 2 == 0,
                "logit_bias": NO_END,
            }
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            stack.callback(connection.close)
            if number % 4 < 2:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            headers = {
                "Host": "localhost",
                "Content-Type": "application/json",
                **server.headers,
            }
            connection.sendall(request_bytes("POST", CHAT, headers, json.dumps(body).encode()))
            held.append(connection)
        yield held


def _judge(server: Patient, examination: Examination, load: Load) -> None:
    """All who stayed got all; those who vanished are counted once, as what they are."""
    examination.sent_besides(_COUNT)
    examination.judge(load)
    assert _COUNT == _cancelled(server)
    assert _COUNT == server.total(
        "http_server_request_duration_seconds_count", error_type="client_gone"
    )
    assert 0 == server.total("pharos_engine_restarts_total")


def _cancelled(server: Patient) -> float:
    """Return how many requests were cancelled by their clients' leaving."""
    figure = "pharos_requests_finished_total"
    return server.total(figure, finish_reason="cancelled", error_type="client_gone")


def _tokens_of_the_vanished(server: Patient) -> list[int]:
    """Return how many tokens each of them had been given, as the log has it."""
    lines: list[str] = []

    def all_told() -> bool:
        lines[:] = [line for line in server.log if '"finish_reason":"cancelled"' in line]
        return len(lines) >= _COUNT

    server.wait_for(all_told, "a line in the log for each")
    return [json.loads(line).get("completion_tokens", 0) for line in lines]


def _read_some_text(connection: socket.socket) -> None:
    """Read a stream up to its first character."""
    received = b""
    while not re.search(rb'"content": ?"[^"]', received):
        chunk = connection.recv(65536)
        assert chunk, received
        received += chunk


def _wait_taken(server: Patient, sequences: int) -> None:
    """Wait until the server has taken so many, wherever they are."""

    def taken() -> bool:
        report = server.health()
        held: int = report["running"] + report["waiting"]
        return held == sequences

    server.wait_for(taken, f"{sequences} taken")


def test_vanishing_in_the_queue(
    tiny_model: Path, examine: Callable[[Patient], Examination]
) -> None:
    """The engine stands still, with others before them: none of them ever begins."""
    with planted(tiny_model, "--max-batch", "4", "--max-queue", "124") as server:
        examination = examine(server)
        asks = examination.draw(12)
        before = sum(ask.sequences for ask in asks)
        server.engine.suspend()
        with examination.load(asks) as load:
            _wait_taken(server, before)
            with _vanishing(server, "short", 8000):
                _wait_taken(server, before + _COUNT)
            server.wait_for(lambda: _cancelled(server) == _COUNT, "all noticed")
            server.engine.resume()
        _judge(server, examination, load)
        assert [0] * _COUNT == _tokens_of_the_vanished(server)


def test_vanishing_in_prefill(
    dangerous_model: Path, examine: Callable[[Patient], Examination]
) -> None:
    """Their prompts would take minutes: they are read to their ends for nobody, and those behind
    them need not wait for it.
    """
    with planted(dangerous_model, *_FLAGS) as server, contextlib.ExitStack() as stack:
        examination = examine(server)
        asks = examination.draw(6)
        behind = sum(ask.sequences for ask in asks)
        with _vanishing(server, f"{SLOWS} is slow to read " * 300, 8):
            _wait_taken(server, _COUNT)
            server.wait_for(lambda: server.health()["running"] > 0, "in prefill")
            load = stack.enter_context(examination.load(asks))
            _wait_taken(server, _COUNT + behind)
        stack.close()
        _judge(server, examination, load)
        assert [0] * _COUNT == _tokens_of_the_vanished(server)


def test_vanishing_in_decode(
    dangerous_model: Path, examine: Callable[[Patient], Examination]
) -> None:
    """Their answers would be thousands of tokens long: they end with the connections."""
    with planted(dangerous_model, *_FLAGS) as server, contextlib.ExitStack() as stack:
        examination = examine(server)
        asks = examination.draw(6)
        with _vanishing(server, "on and on", 8000) as held:
            _wait_taken(server, _COUNT)
            for connection in held[::2]:
                _read_some_text(connection)
            load = stack.enter_context(examination.load(asks))
            load.wait_for_text(1)
        stack.close()
        _judge(server, examination, load)
        assert sum(tokens > 0 for tokens in _tokens_of_the_vanished(server)) >= _COUNT // 2
