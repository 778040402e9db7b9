"""A machine that runs short: of files, of disk, of true time. Served or refused clearly, then well."""

from __future__ import annotations

import contextlib
import json
import math
import resource
import socket
import time
from http.client import HTTPConnection, HTTPResponse
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from support.client import CHAT, chat_body, wait_until
from support.limits import limited
from support.served import serve_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.served import Served


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> Iterator[Served]:
    """A server whose limits the tests lower; they raise them again."""
    with serve_model(tiny_model, "--served-model-name", "tiny") as running:
        yield running


def post(served: Served, body: bytes) -> tuple[HTTPResponse, dict[str, Any]]:
    """Send a chat and read its answer."""
    connection = HTTPConnection(served.address, timeout=15)
    with contextlib.closing(connection):
        connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response, json.loads(response.read())


def test_without_a_file_left_newcomers_wait_and_nothing_spins(served: Served) -> None:
    """They are answered as soon as there are files again, and no processor is burnt meanwhile."""
    host, _, port = served.address.partition(":")
    process = psutil.Process(served.pid)
    with contextlib.ExitStack() as stack:
        waiting = []
        with limited(psutil.Process(served.pid), resource.RLIMIT_NOFILE, process.num_fds()):
            for _ in range(8):
                connection = socket.create_connection((host, int(port)), timeout=15)
                stack.enter_context(connection)
                connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
                waiting.append(connection)
            used = sum(process.cpu_times()[:2])
            begin = time.monotonic()
            waiting[0].settimeout(1.0)
            with contextlib.suppress(TimeoutError):
                waiting[0].recv(1, socket.MSG_PEEK)
            share = (sum(process.cpu_times()[:2]) - used) / max(time.monotonic() - begin, 0.5)
        assert share < 0.5
        for connection in waiting:
            connection.settimeout(15)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_full_disk_refuses_large_bodies_in_words_and_serves_small_ones(served: Served) -> None:
    """A large body is kept in a file while it comes. With room again it is read as ever."""
    large = json.dumps(chat_body(messages=[{"role": "user", "content": "x" * 3_000_000}])).encode()
    small = json.dumps(chat_body()).encode()
    with limited(psutil.Process(served.pid), resource.RLIMIT_FSIZE, 0):
        response, answer = post(served, large)
        assert (503, "storage_full") == (response.status, answer["error"]["code"])
        assert int(response.headers["Retry-After"]) >= 1
        assert 200 == post(served, small)[0].status
    response, answer = post(served, large)
    assert (400, "context_length_exceeded") == (response.status, answer["error"]["code"])


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_a_clock_that_is_set_cuts_nobody_and_spares_nobody(
    tiny_model: Path,
    serving: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    jump: float,
) -> None:
    """An idle connection goes on; one that drips is cut, whatever the wall clock says."""
    with serving(tiny_model, ready=False, header_seconds=1.0) as server:
        idle, dripping = server.connect(), server.connect()
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + jump)
        dripping.sendall(b"GET /livez HTT")
        assert b"" == dripping.recv(65536)
        idle.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert idle.recv(65536).startswith(b"HTTP/1.1 200 ")
        for connection in (idle, dripping):
            connection.close()


def test_readers_that_take_nothing_give_way_to_newcomers(
    tiny_model: Path, serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all connections taken by whole answers that nobody reads, a probe is answered."""
    monkeypatch.setattr("mlx_pharos.server.channel._READ_SECONDS", math.inf)
    with (
        serving(tiny_model, ready=False, connection_limit=12, max_batch=1, max_queue=1) as server,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(12):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(10)
            connection.connect(("127.0.0.1", server.port))
            # Enough answers in a row to fill what the kernel holds for a connection.
            request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError, ConnectionError):
                for _ in range(300):
                    connection.send(request)
        # Only now do they give way, so that none is cut while it still asks.
        monkeypatch.setattr("mlx_pharos.server.channel._READ_SECONDS", 0.2)
        wait_until(
            lambda: sum(channel.only_reads() for channel in channels_of(server)) >= 3, timeout=15
        )
        for _ in range(3):
            assert 200 == server.get("/livez").status


def channels_of(server: Any) -> list[Any]:
    """Return the open connections of a server in this process."""
    return [each for one in server.listener._servers for each in one._channels()]
