"""Faults of clients: they flood, vanish, drip, stall and send rubbish."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import time
from typing import TYPE_CHECKING

import pytest

from support.asks import CHAT, large_body
from support.planted import planted
from support.raw_http import request_bytes

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
def _connections(
    server: Patient, count: int, first: bytes, *, receive_buffer: int = 0
) -> Iterator[list[socket.socket]]:
    """Hold connections that have sent something and read nothing; with a buffer of so many bytes."""
    with contextlib.ExitStack() as stack:
        held = []
        for _ in range(count):
            connection = stack.enter_context(socket.socket())
            connection.settimeout(10)
            if receive_buffer:  # the kernel goes by it from the first packet on
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            connection.connect(("127.0.0.1", server.port))
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
def test_idle_connections(tiny_model: Path, examine: Callable[[Patient], Examination]) -> None:
    """300 connections that send nothing, while others are served: each question whether the server
    lives is answered within a second.
    """
    with planted(tiny_model, "--max-batch", "4", "--max-queue", "28") as server:
        examination = examine(server)
        asks = examination.draw(10)
        with _connections(server, 300, b""), examination.load(asks) as load:
            pass
        examination.judge(load, slowest_probe=1.0)


def _is_cut(dripping: socket.socket) -> bool:
    """Send a byte more of a request; return whether the server has closed the connection."""
    dripping.setblocking(False)
    try:
        dripping.send(b"x")
        return not dripping.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _drip_until_cut(connections: list[socket.socket]) -> None:
    """Send a byte on each now and then, for as long as it is open."""
    deadline = time.monotonic() + 30
    left = connections
    while left := [each for each in left if not _is_cut(each)]:
        assert time.monotonic() < deadline, f"{len(left)} are still open"
        time.sleep(0.2)


@pytest.mark.battery
@pytest.mark.parametrize("part", ["X-Name: ", "Content-Length: 5000\r\n\r\n"], ids=["head", "body"])
def test_dripping_connections(
    tiny_model: Path, examine: Callable[[Patient], Examination], part: str
) -> None:
    """300 connections that send a byte now and then are cut when their time is over, while others
    are served: each question whether the server lives is answered within a second.
    """
    flags = (
        "--max-batch",
        "4",
        "--max-queue",
        "28",
        "--header-timeout",
        "3",
        "--body-timeout",
        "3",
    )
    with planted(tiny_model, *flags) as server:
        examination = examine(server)
        asks = examination.draw(10)
        key = server.headers["Authorization"]
        first = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {key}\r\n{part}"
        with (
            _connections(server, 300, first.encode()) as held,
            examination.load(asks) as load,
        ):
            _drip_until_cut(held)
        examination.judge(load, slowest_probe=1.0)


@pytest.mark.battery
def test_stalled_readers(tiny_model: Path, examine: Callable[[Patient], Examination]) -> None:
    """Clients that ask for more than the sockets hold and read none of it hold up nobody, and are
    cut.
    """
    flags = ("--max-batch", "48", "--max-queue", "48", "--idle-timeout", "3")
    with planted(tiny_model, *flags) as server:
        examination = examine(server)
        asks = examination.draw(10)
        headers = {"Host": "localhost", "Content-Type": "application/json", **server.headers}
        body = large_body(n=8, max_tokens=8000, stream=True)
        request = request_bytes("POST", CHAT, headers, json.dumps(body).encode())
        with (
            _connections(server, 4, request, receive_buffer=4096),
            examination.load(asks) as load,
        ):
            server.wait_for(lambda: _gone(server) == 4, "the stalled are cut")
        examination.sent_besides(4)
        examination.judge(load)


def _gone(server: Patient) -> float:
    """Return how many requests were cancelled because nobody read what came of them."""
    name = "pharos_requests_finished_total"
    return server.total(name, finish_reason="cancelled", error_type="client_gone")


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
