"""Input that is wrong on purpose: a 4xx in JSON, at once, and nothing in the engine."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
from waitress.buffers import OverflowableBuffer

from mlx_pharos.server.parser import Chunks
from support.client import CHAT, COMPLETIONS, chat_body, read_answer, wait_until
from support.malformed import HEADS
from support.raw_http import exchange, statuses

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from support.client import RunningServer

_LIVE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: %b\r\n\r\n"
_OLD = _LIVE.replace(b"1.1", b"1.0")
BODIES = {
    "empty": b"",
    "not JSON": b"hello",
    "array": b"[]",
    "deep": b'{"messages": ' + b"[" * 200_000,
    "deep and closed": b'{"model": "tiny", "messages": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "NaN": b'{"model": "tiny", "temperature": NaN}',
    "1e999": b'{"model": "tiny", "temperature": 1e999}',
    "huge integer": b'{"model": "tiny", "seed": ' + b"1" * 10_000 + b"}",
    "lone surrogate": b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
    "duplicate key": b'{"model": "tiny", "model": "tiny"}',
    "UTF-16": '{"model": "tiny"}'.encode("utf-16"),
    "Latin-1": '{"model": "é"}'.encode("latin-1"),
    "NUL": b"\x00" * 100,
    "huge token id": b'{"model": "tiny", "prompt": [99999999999999999999]}',
}


def raw(server: RunningServer, data: bytes) -> tuple[int, bytes]:
    """Send bytes, and return the status and body of what comes until the server closes."""
    with server.connect() as connection:
        connection.sendall(data)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
            head, end, body = received.partition(b"\r\n\r\n")
            length = [
                int(line.split(b":")[1])
                for line in head.splitlines()
                if line.lower().startswith(b"content-length:")
            ]
            if end and length and len(body) >= length[0]:
                return int(head.split()[1]), body
    raise AssertionError(received)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_bad_body_is_a_400_and_never_reaches_the_engine(
    server: RunningServer, path: str, body: bytes
) -> None:
    """The error is in OpenAI's shape, comes at once, and nothing was submitted."""
    start = time.monotonic()
    answer = server.post(path, body)

    assert 400 == answer.status
    assert "invalid_request_error" == answer.error["type"]
    assert time.monotonic() - start < 5
    assert 0 == server.engine.in_flight


@pytest.mark.parametrize(("head", "status"), HEADS.values(), ids=HEADS)
def test_what_is_no_http_is_answered_in_json(
    server: RunningServer, head: bytes, status: int
) -> None:
    """Also what waitress refuses by itself has OpenAI's shape, and shows no insides."""
    got, body = raw(server, head)

    assert status == (400 if got in {413, 431} else got)
    if status != 200:
        message = json.loads(body)["error"]["message"]
        assert "Traceback" not in message
        assert len(message) < 300


def test_other_media_types_are_a_415(server: RunningServer) -> None:
    """A form or a body without a type is refused before it is read."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=x"):
        answer = server.post(CHAT, b"{}", Content_Type=kind)
        assert (415, "unsupported_media_type") == (answer.status, answer.error["code"])


def test_a_100_mb_body_is_a_413_before_it_is_sent(server: RunningServer) -> None:
    """The refusal comes at the headers, and the client that goes on sending still sees it."""
    with server.connect() as connection:
        size = 100 * 1024 * 1024
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {size}"
        connection.sendall(head.encode() + b"\r\n\r\n")

        def flood() -> None:
            try:
                for _ in range(100):
                    connection.sendall(b" " * (1024 * 1024))
            except OSError:
                pass

        thread = threading.Thread(target=flood)
        thread.start()
        answer = b""
        while b"body_too_large" not in answer:
            chunk = connection.recv(65536)
            assert chunk, answer
            answer += chunk
        assert answer.startswith(b"HTTP/1.1 413 ")
        connection.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    ("tail", "good"),
    [
        (b"\r\n", True),
        (b"A: b\r\nC: d\r\n\r\n", True),
        (b"A: b\nC: d\r\n\r\n", False),
        (b"A: b\r\r\n\r\n", False),
        (b"\nA: b\r\n\r\n", False),
    ],
)
def test_a_trailer_is_read_the_same_however_it_comes(tail: bytes, good: bool) -> None:
    """Cut at any byte; what comes behind it belongs to the next request."""
    data, following = b"2\r\nab\r\n0\r\n" + tail, b"GET /\n"
    for cut in range(1, len(data)):
        chunks = Chunks(OverflowableBuffer(1024))
        pieces = [data[:cut], data[cut:] + following]
        taken = 0
        while pieces and not chunks.completed and not chunks.error:
            taken += chunks.received(pieces.pop(0))
        assert good is not bool(chunks.error), cut
        if good:
            assert (True, len(data), 2) == (chunks.completed, taken, len(chunks)), cut


def test_a_chunked_body_over_the_limit_is_a_413(server: RunningServer) -> None:
    """The limit holds without a declared length, and nobody waits for the end of the body."""
    limit = server.options.max_body_bytes
    with server.connect() as connection:
        connection.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        connection.sendall(f"{limit + 1:x}\r\n".encode() + b" " * (limit + 1))
        assert read_answer(connection)[0].startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("data", "answers"),
    [
        (b"A\r\n\r\n" * 13_000, [400]),
        (b"A /\r\n\r\n" * 9000, [404]),
        (b"\r\n" * 30_000 + _LIVE % b"x" + b"\r\n" * 30_000 + _LIVE % b"close", [200, 200]),
        (_LIVE % b"close" + _LIVE % b"x", [200]),
        (_LIVE % b"x, Close" + _LIVE % b"x", [200]),
        (_LIVE % b"x" * 60 + _LIVE % b"close", [200] * 61),
        (_LIVE % b"x" * 1000, [200] * 65),
        (_OLD % b"x" + _OLD % b"x", [200]),
        (_OLD % b"x, Keep-Alive" + _OLD % b"x", [200, 200]),
    ],
    ids=[
        "rubbish",
        "no version",
        "empty lines",
        "close",
        "a list",
        "many",
        "too many",
        "1.0",
        "1.0 that stays",
    ],
)
def test_nothing_is_read_behind_the_last_request(
    server: RunningServer, data: bytes, answers: list[int]
) -> None:
    """The connection ends with a refusal, with who says so, and with one who sends very many."""
    assert answers == statuses(exchange(server.port, data))


def test_what_follows_a_request_does_not_cut_its_answer(
    tiny_model: Path, serving: Callable[..., Any]
) -> None:
    """An empty line behind a body, or half of a next request, is no reason to end the first."""
    body = json.dumps(chat_body(max_tokens=3000, temperature=0, logit_bias={"97": 100})).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with serving(tiny_model, header_seconds=0.01) as server:
        for more in (b"\r\n", b"GET /livez"):
            with server.connect() as connection:
                connection.sendall(head.encode() + body + more)
                assert read_answer(connection)[0].startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("path", [CHAT + "/", "/" + CHAT])
def test_a_long_body_is_read_wherever_the_route_is_found(server: RunningServer, path: str) -> None:
    """Slashes before and behind a path make no difference to what it may be sent."""
    body = chat_body(metadata={"note": "x" * 400}) | {"user": "y" * 70_000}
    answer = server.post(path, json.dumps(body).encode() + b" " * 70_000)

    assert 413 != answer.status
    assert "body_too_large" not in answer.body.decode()


def test_a_chunked_body_within_the_limit_is_read(server: RunningServer) -> None:
    """Clients that do not know the length beforehand are served."""
    body = json.dumps(chat_body()).encode()
    chunks = b"".join(b"%x\r\n%b\r\n" % (1, body[i : i + 1]) for i in range(len(body)))
    status, answer = raw(
        server,
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "Transfer-Encoding: chunked\r\n\r\n".encode()
        + chunks
        + b"0\r\n\r\n",
    )

    assert 200 == status, answer


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "BREW"])
def test_other_methods_are_a_405_that_says_what_is_allowed(
    server: RunningServer, method: str
) -> None:
    """Whatever the method, the answer is JSON with an Allow header."""
    answer = server.request(method, CHAT)

    assert 405 == answer.status
    assert "OPTIONS, POST" == answer.headers["Allow"]
    if method != "HEAD":
        assert "method_not_allowed" == answer.error["code"]


def test_head_and_options_are_what_http_says(server: RunningServer) -> None:
    """HEAD is GET without the body; OPTIONS tells the methods."""
    head = server.request("HEAD", "/v1/models")
    assert (200, b"") == (head.status, head.body)
    options = server.request("OPTIONS", "/v1/models")
    assert {"GET", "HEAD", "OPTIONS"} == set(options.headers["Allow"].split(", "))


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/chat", "/v1//models", "/%00", "/%ff", "/v2/x?y"])
def test_unknown_routes_are_a_404_in_json(server: RunningServer, path: str) -> None:
    """No path is answered in HTML, and none is redirected."""
    answer = server.get(path)

    assert (404, "route_not_found") == (answer.status, answer.error["code"])


def test_a_get_that_expects_100_continue_does_not_hang(server: RunningServer) -> None:
    """There is no body to wait for."""
    assert (
        200
        == raw(server, b"GET /livez HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n\r\n")[0]
    )


@pytest.mark.parametrize(
    "part", [b"GET /livez HTT", b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx"]
)
def test_a_client_that_never_ends_its_request_is_cut(
    tiny_model: Path, serving: Callable[..., Any], part: bytes
) -> None:
    """Headers and body have deadlines, also for a client that sends a byte now and then."""
    with (
        serving(tiny_model, ready=False, header_seconds=0.3, body_seconds=0.3) as server,
        server.connect() as connection,
    ):
        connection.sendall(part)
        assert b"" == connection.recv(65536)


def test_idle_connections_do_not_make_the_server_deaf(
    tiny_model: Path, serving: Callable[..., Any]
) -> None:
    """When all connections are taken by clients that ask nothing, the oldest give way."""
    with serving(tiny_model, ready=False, connection_limit=12) as server:
        idle = [server.connect() for _ in range(20)]
        assert 200 == server.get("/livez").status
        for connection in idle:
            connection.close()


def test_a_client_that_reads_nothing_is_cut(tiny_model: Path, serving: Callable[..., Any]) -> None:
    """A stalled reader loses its connection, and the engine its request."""
    with serving(tiny_model, idle_seconds=0.5) as server, server.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = chat_body(max_tokens=8000, n=8, stream=True, logprobs=True, top_logprobs=20)
        data = json.dumps(body).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        wait_until(lambda: server.engine.in_flight == 8)
        server.wait_idle(8)


def test_after_all_this_the_server_still_answers(server: RunningServer) -> None:
    """Nothing above left a thread, a request or a connection behind."""
    assert 200 == server.chat().status
    assert 0 == server.engine.in_flight
