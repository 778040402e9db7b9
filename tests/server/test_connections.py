"""Connections: who may hold them, for how long, and what is said before a body is sent."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from waitress.server import TcpWSGIServer

from mlx_pharos.resilience.api_keys import ApiKey
from mlx_pharos.server.channel import Channel
from mlx_pharos.server.tcp_server import _FILES_SECONDS
from support.client import CHAT, chat_body, read_answer, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlx_pharos.server.tcp_server import Server
    from support.client import RunningServer

HALVES = {
    "headers": f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n".encode(),
    "body": f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{{".encode(),
}


def read_all(connection: socket.socket) -> bytes:
    """Read until the server closes."""
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_requests_that_never_end_do_not_make_the_server_deaf(
    tiny_model: Path, serving: Callable[..., Any], half: bytes
) -> None:
    """With 300 half-sent requests, more than there are connections, probes are answered."""
    with serving(tiny_model, ready=False) as server:
        assert server.options.connection_count < 300
        held = []
        for _ in range(300):
            connection = server.connect()
            connection.sendall(half)
            held.append(connection)
        begin = time.monotonic()
        for _ in range(3):
            assert 200 == server.get("/livez").status
        assert time.monotonic() - begin < 2
        # The oldest gave way, the newest are still waited for.
        assert b"" == held[0].recv(65536)
        held[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            held[-1].recv(65536)
        for connection in held:
            connection.close()


def test_who_comes_with_many_others_is_answered(
    tiny_model: Path, serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more clients than there are connections none is cut before it had time to send."""
    monkeypatch.setattr("mlx_pharos.server.channel._NEWCOMER_SECONDS", 10)
    with serving(tiny_model, ready=False, connection_limit=16) as server:
        held = [server.connect() for _ in range(60)]
        # Taken are as many as may be; nobody has sent anything yet.
        wait_until(lambda: len(server.listener._members) >= 14)
        probe = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        for connection in held:
            connection.sendall(probe)
        for connection in held:
            assert read_all(connection).startswith(b"HTTP/1.1 200 ")
            connection.close()


@pytest.mark.parametrize("read", [0, 20], ids=["unread", "half-read"])
def test_who_has_sent_its_request_is_answered_however_late_it_is_read(
    tiny_model: Path, serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, read: int
) -> None:
    """Of more clients than there are connections: what the server is late in is not their waiting."""
    monkeypatch.setattr("mlx_pharos.server.channel._NEWCOMER_SECONDS", 0)
    probe = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with (
        serving(tiny_model, ready=False, connection_limit=16) as server,
        contextlib.ExitStack() as stack,
    ):
        (listening,) = server.listener._servers
        early = [stack.enter_context(server.connect()) for _ in range(10)]
        for connection in early:
            connection.sendall(probe[:read])
        wait_until(lambda: len(listening._channels()) == 10)
        wait_until(lambda: not read or all(each.request for each in listening._channels()))
        with _held(listening):
            # More than there is room for, and the first that the loop finds when it goes on.
            late = [stack.enter_context(server.connect()) for _ in range(20)]
            for connection in early:
                connection.sendall(probe[read:])
            for connection in late:
                connection.sendall(probe)
        for connection in [*early, *late]:
            assert read_all(connection).startswith(b"HTTP/1.1 200 ")


def test_without_a_file_one_gives_way_at_a_time(
    tiny_model: Path, serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without a file for a newcomer is asked again after a pause, and not in the same turn."""
    monkeypatch.setattr("mlx_pharos.server.channel._NEWCOMER_SECONDS", 0)
    real, asked_at = TcpWSGIServer.accept, []

    def accept(server: Server) -> Any:
        asked_at.append(time.monotonic())
        if len(asked_at) <= 3:
            raise OSError(errno.ENFILE, "no file")
        return real(server)

    with (
        serving(tiny_model, ready=False, connection_limit=32) as server,
        contextlib.ExitStack() as stack,
    ):
        (listening,) = server.listener._servers
        for _ in range(10):
            stack.enter_context(server.connect())
        wait_until(lambda: len(listening._channels()) == 10)
        monkeypatch.setattr(TcpWSGIServer, "accept", accept)
        assert 200 == server.get("/livez").status
        for earlier, later in itertools.pairwise(asked_at[:4]):
            assert later - earlier >= _FILES_SECONDS
        assert 10 - 3 <= len(listening._channels()) <= 10 - 3 + 1  # the one that was just answered


@contextlib.contextmanager
def _held(listening: Server) -> Iterator[None]:
    """Have the loop stand still, as on a machine that is busy with something else."""
    stands, go_on = threading.Event(), threading.Event()

    def stand() -> None:
        stands.set()
        go_on.wait(10)

    listening.later(stand)
    try:
        assert stands.wait(10)
        yield
    finally:
        go_on.set()


def test_running_requests_never_give_way(tiny_model: Path, serving: Callable[..., Any]) -> None:
    """However many connections come, an answer that is being made is finished."""
    with serving(tiny_model, connection_limit=16, max_batch=1, max_queue=1) as server:
        busy = server.send(CHAT, **chat_body(max_tokens=400, stream=True))
        wait_until(lambda: server.engine.in_flight == 1)
        held = [server.connect() for _ in range(40)]
        stream = b""
        while b"[DONE]" not in stream:
            chunk = busy.recv(65536)
            assert chunk
            stream += chunk
        for connection in [busy, *held]:
            connection.close()


@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n"])
def test_a_declared_length_beyond_the_limit_is_refused_at_the_headers(
    server: RunningServer, expect: str
) -> None:
    """One byte too many is a 413 before any of the body is sent, and nothing asks for it."""
    size = server.options.max_body_bytes + 1
    with server.connect() as connection:
        connection.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{expect}Content-Length: {size}\r\n\r\n".encode()
        )
        assert read_answer(connection)[0].startswith(b"HTTP/1.1 413 ")


def test_a_wrong_key_is_refused_at_the_headers(
    tiny_model: Path, serving: Callable[..., Any]
) -> None:
    """Who has no key cannot hold a connection with a body that never comes."""
    with serving(tiny_model, ready=False, api_keys=(ApiKey.of("main", "right"),)) as server:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n"
        with server.connect() as connection:
            connection.sendall(
                f"{head}Authorization: Bearer wrong\r\nX-Request-Id: mine\r\n\r\n".encode()
            )
            answer, body = read_answer(connection)
            assert answer.startswith(b"HTTP/1.1 401 ")
            assert b"www-authenticate: bearer" in answer.lower()
            assert b": mine" in answer
            assert "invalid_api_key" == json.loads(body)["error"]["code"]
        with server.connect() as connection:
            connection.sendall(f"{head}Authorization: Bearer right\r\n\r\n".encode())
            connection.settimeout(0.3)
            with pytest.raises(TimeoutError):
                connection.recv(65536)


@pytest.mark.parametrize(
    "request_", [b"GET /livez HTTP/1.0\r\n\r\n", b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"]
)
def test_a_client_that_sends_no_more_is_answered(server: RunningServer, request_: bytes) -> None:
    """Shutting down the sending side after a request loses no quick answer."""
    for _ in range(20):
        with server.connect() as connection:
            connection.sendall(request_)
            connection.shutdown(socket.SHUT_WR)
            assert read_all(connection).startswith(b"HTTP/1.")


@pytest.mark.parametrize("path", ["/livez", "/no/such", "/../etc HTTP/1.1 x"])
def test_a_small_answer_is_sent_in_one_piece(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Its head and its body: a second packet would wake the client a second time."""
    sent: list[bytes] = []
    send = Channel.send

    def note(channel: Channel, data: bytes, **how: Any) -> int:
        sent.append(bytes(data))
        return int(send(channel, data, **how))

    monkeypatch.setattr(Channel, "send", note)
    with server.connect() as connection:
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        whole = read_all(connection)

    assert [whole] == sent
    assert whole.startswith(b"HTTP/1.")
    assert whole.endswith(b"}")
