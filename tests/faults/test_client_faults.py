"""Faults of clients: they flood, vanish, drip, stall and send rubbish."""

from __future__ import annotations

import contextlib
import json
import random
import socket
from typing import TYPE_CHECKING

import pytest

from support.planted import planted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.examination import Examination
    from support.patient import Patient

_RUBBISH = (
    b"",
    b"{",
    b"[" * 100_000,
    b'{"model": "tiny", "messages": "no"}',
    b'{"model": "tiny", "messages": [], "n": 1e999}',
    b'{"model": "\\ud800"}',
    b"\xff\xfe\x00",
    b'{"model": "/etc/passwd", "messages": [{"role": "user", "content": "x"}]}',
)


@contextlib.contextmanager
def _connections(server: Patient, count: int, first: bytes) -> Iterator[list[socket.socket]]:
    """Hold connections that have sent something and read nothing."""
    with contextlib.ExitStack() as stack:
        held = []
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            stack.callback(connection.close)
            connection.sendall(first)
            held.append(connection)
        yield held


def test_a_flood(tiny_model: Path, examine: Callable[[Patient], Examination]) -> None:
    """120 requests at once on 12 places: each is answered or told when to come back."""
    with planted(tiny_model, "--max-batch", "4", "--max-queue", "8") as server:
        examination = examine(server)
        asks = examination.draw(6)
        with examination.load(asks * 20) as load:
            pass
        examination.judge(load, whole=False, refusals=True)
        assert any(reply.status == 503 for reply in load.replies)
        assert sum(reply.whole for reply in load.replies) >= 6


@pytest.mark.battery
def test_vanishing(tiny_model: Path, examine: Callable[[Patient], Examination], seed: int) -> None:
    """Two thirds of the clients leave, at once or in the middle; the others notice nothing."""
    draw = random.Random(seed)
    with planted(tiny_model, "--max-batch", "4", "--max-queue", "124") as server:
        examination = examine(server)
        asks = [ask for ask in examination.draw(48) if ask.streams]
        leave = [draw.choice([0, draw.randrange(1, 40), None]) for _ in asks]
        with examination.load(asks, leave_after=leave) as load:
            pass
        examination.judge(load)


@pytest.mark.battery
@pytest.mark.parametrize(
    "first",
    [b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Le"],
    ids=["idle", "dripping"],
)
def test_many_connections(
    tiny_model: Path, examine: Callable[[Patient], Examination], first: bytes
) -> None:
    """300 connections that send nothing, or half a request, while others are served: each question
    whether the server lives is answered within a second.
    """
    with planted(tiny_model, "--max-batch", "4", "--max-queue", "28") as server:
        examination = examine(server)
        asks = examination.draw(10)
        with _connections(server, 300, first) as held, examination.load(asks) as load:
            for connection in held[::3]:
                with contextlib.suppress(OSError):
                    connection.sendall(first[:1])
        examination.judge(load, slowest_probe=1.0)


@pytest.mark.battery
def test_stalled_readers(tiny_model: Path, examine: Callable[[Patient], Examination]) -> None:
    """Clients that ask for long streams and read none of them hold up nobody."""
    with planted(
        tiny_model, "--max-batch", "4", "--max-queue", "28", "--idle-timeout", "5"
    ) as server:
        examination = examine(server)
        asks = examination.draw(10)
        body = json.dumps(
            {
                "model": "tiny",
                "messages": [{"role": "user", "content": "on and on"}],
                "max_tokens": 2000,
                "stream": True,
            }
        )
        head = "".join(f"{name}: {value}\r\n" for name, value in server.headers.items())
        request = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        )
        with _connections(server, 8, request.encode()), examination.load(asks) as load:
            pass
        examination.sent_besides(8)
        examination.judge(load)


@pytest.mark.battery
def test_rubbish(tiny_model: Path, examine: Callable[[Patient], Examination]) -> None:
    """Bodies that are no requests, from 8 connections, while others are served."""
    with planted(tiny_model, "--max-batch", "4", "--max-queue", "28") as server:
        examination = examine(server)
        asks = examination.draw(10)
        with examination.load(asks) as load:
            for body in _RUBBISH * 4:
                answer = examination.send_raw(body)
                assert answer.split()[1] in {b"400", b"404"}
        examination.judge(load)
