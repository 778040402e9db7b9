"""Probes and polls: answered by the I/O loop, before Flask, whatever else waits."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask

from mlx_pharos.server.operation import OPERATION_PATHS
from support.bare_listener import LOOP, listening
from support.client import read_answer, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from mlx_pharos.server.listener import Listener
    from support.client import RunningServer


class Kept:
    """An application that answers operations at once, and keeps every other thread that comes."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.inside: list[str] = []
        self.operations: list[tuple[str, str]] = []
        """The method of each, and the thread that asked."""

    def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        """Answer."""
        name = threading.current_thread().name
        if environ["PATH_INFO"] in OPERATION_PATHS:
            self.operations.append((environ["REQUEST_METHOD"], name))
        else:
            self.inside.append(name)
            self.open.wait(20)
        start("200 OK", [("Content-Length", "2")])
        return [b"ok"]


def _connect(listener: Listener) -> socket.socket:
    return socket.create_connection(("127.0.0.1", listener.port), timeout=15)


def _request(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def test_an_operation_needs_no_thread() -> None:
    """While every thread is kept, who asks for a probe or a poll is answered, each time it asks."""
    kept = Kept()
    with contextlib.ExitStack() as ends:
        listener = ends.enter_context(listening(kept, kept.open))
        threads = sum(listener.threads())
        for _ in range(threads):
            ends.enter_context(_connect(listener)).sendall(_request("/v1/models"))
        wait_until(lambda: len(kept.inside) == threads)
        patient = ends.enter_context(_connect(listener))
        for path in sorted(OPERATION_PATHS):
            patient.sendall(_request(path))
            assert read_answer(patient)[0].startswith(b"HTTP/1.1 200 ")
        assert [("GET", LOOP)] * len(OPERATION_PATHS) == kept.operations
        assert LOOP not in kept.inside


def test_operations_in_a_pipeline_are_answered_in_their_order() -> None:
    """50 at once on one connection, and what comes behind them, which needs a thread."""
    kept = Kept()
    kept.open.set()
    with listening(kept, kept.open) as listener, _connect(listener) as connection:
        connection.sendall(_request("/livez") * 50 + _request("/v1/models"))
        received = b""
        while received.count(b"ok") < 51:
            data = connection.recv(65536)
            assert data, received
            received += data
        assert [("GET", LOOP)] * 50 == kept.operations
        assert LOOP not in kept.inside


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_other_methods_are_no_operation(method: str) -> None:
    """They are for Flask to refuse, in a thread."""
    kept = Kept()
    with listening(kept, kept.open) as listener, _connect(listener) as connection:
        connection.sendall(_request("/metrics", method))
        assert read_answer(connection)[0].startswith(b"HTTP/1.1 200 ")
    ((_, thread),) = kept.operations
    assert LOOP != thread


def test_flask_has_no_part_in_them(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are answered while Flask is broken: what is slow or fails there does not reach a probe."""

    def fail(*_: Any) -> None:
        raise RuntimeError("Flask is broken")

    monkeypatch.setattr(Flask, "wsgi_app", fail)
    monkeypatch.setattr(Flask, "request_context", fail)
    for path in sorted(OPERATION_PATHS):
        for method in ("GET", "HEAD"):
            answer = server.request(method, path)
            assert 200 == answer.status
            assert bool(answer.body) == (method == "GET")
            assert answer.headers["X-Request-Id"].startswith("req_")
    assert {"status": "ok"} == server.get("/livez").json


def test_polls_keep_no_generation_waiting(server: RunningServer) -> None:
    """What is put off to the end of a burst is not put off by them: they are no burst."""
    members = server.listener._members
    seen: list[bool] = []
    done = threading.Event()

    def look(times: int) -> None:
        seen.append(members._is_in_burst)
        if times:
            members.soon(lambda: look(times - 1))
        else:
            done.set()

    members.soon(lambda: look(20))
    server.listener._servers[0].wake()
    assert done.wait(10)
    assert not any(seen[1:])
