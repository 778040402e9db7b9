"""Ends of the server itself: asked for, asked for twice, out of time, and killed."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
from typing import TYPE_CHECKING

import psutil
import pytest

from support.asks import CHAT, endless_asks
from support.planted import planted
from support.raw_http import statuses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.asks import Ask
    from support.examination import Examination
    from support.patient import Patient


@contextlib.contextmanager
def _kept_alive(server: Patient) -> Iterator[http.client.HTTPConnection]:
    """A connection that has been used, and is used again or broken."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", "/livez")
        assert b"ok" in connection.getresponse().read()
        connection.auto_open = 0
        yield connection


def _assert_draining(connection: http.client.HTTPConnection, server: Patient, ask: Ask) -> None:
    """A request is refused in words, with advice."""
    headers = {"Content-Type": "application/json", **server.headers}
    connection.request("POST", ask.path, json.dumps(ask.body), headers)
    response = connection.getresponse()
    answer = response.read()
    server.hear(answer)
    assert (503, "draining") == (response.status, json.loads(answer)["error"]["code"])
    assert int(response.headers["Retry-After"]) >= 1


def test_asked_to_stop(tiny_model: Path, examine: Callable[[Patient], Examination]) -> None:
    """SIGTERM under load: what runs is finished, what comes is refused, the exit code is 0."""
    with planted(tiny_model, "--max-batch", "4", "--max-queue", "28") as server:
        examination = examine(server)
        asks = examination.draw(12, tokens=200)
        chat = next(ask for ask in asks if ask.path == CHAT)
        engine = server.engine
        with (
            _kept_alive(server) as early,
            examination.load(asks, probe=False, held=True) as load,
        ):
            load.wait_for_text(40)
            engine.suspend()  # so that it is not over before the others ask
            server.send_signal(signal.SIGTERM)
            server.wait_for(lambda: server.get("/readyz")[0] == 503, "draining")
            _assert_draining(early, server, chat)
            examination.sent_besides(1)
            late = examination.send_raw(json.dumps(chat.body).encode())
            assert [503] == statuses(late)
            assert b"draining" in late
            engine.resume()
            assert 0 == server.wait(40)
        assert not psutil.pid_exists(engine.pid)
        examination.judge_end(load, whole=True)


@pytest.mark.battery
def test_asked_twice(tiny_model: Path, examine: Callable[[Patient], Examination]) -> None:
    """A second SIGTERM ends what runs, in words."""
    with planted(tiny_model, "--max-batch", "4", "--max-queue", "28") as server:
        examination = examine(server)
        asks = examination.draw(12, tokens=4000, known=False)
        with examination.load(asks, probe=False, held=True) as load:
            load.wait_for_text(40)
            server.send_signal(signal.SIGTERM)
            server.wait_for(lambda: server.get("/readyz")[0] == 503, "draining")
            server.send_signal(signal.SIGTERM)
            assert 0 == server.wait(20)
        examination.judge_end(load, whole=False)


@pytest.mark.battery
def test_out_of_time(patient_model: Path, examine: Callable[[Patient], Examination]) -> None:
    """One SIGTERM, and the grace runs out: what runs ends in words, streams after their text, and the
    exit code is 0.
    """
    flags = ("--max-batch", "24", "--max-queue", "40", "--shutdown-grace", "1")
    with planted(patient_model, *flags) as server:
        examination = examine(server)
        examination.draw(1)
        with examination.load(endless_asks(), probe=False, held=True) as load:
            server.wait_for(
                lambda: all(any(each.texts.values()) for each in load.replies if each.ask.streams),
                "all begun",
            )
            server.send_signal(signal.SIGTERM)
            assert 0 == server.wait(40)
        examination.judge_end(load, whole=False)
        assert {"shutdown"} == {reply.error for reply in load.replies}
        assert [200 if each.ask.streams else 503 for each in load.replies] == [
            each.status for each in load.replies
        ]


@pytest.mark.battery
def test_killed(tiny_model: Path, examine: Callable[[Patient], Examination]) -> None:
    """SIGKILL: every client's connection ends, and the engine is gone within 5 seconds."""
    with planted(tiny_model, "--max-batch", "4", "--max-queue", "28") as server:
        examination = examine(server)
        asks = examination.draw(8, tokens=2000, known=False)
        engine = server.engine
        with examination.load(asks, probe=False, held=True) as load:
            load.wait_for_text(40)
            server.send_signal(signal.SIGKILL)
            server.wait(10)
            engine.wait(5)
        assert all(reply.ends <= 1 for reply in load.replies)
