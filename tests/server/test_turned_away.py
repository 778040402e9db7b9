"""Refusals that the I/O loop answers itself: they need no thread, and are judged as all others."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any

import pytest

from mlx_pharos.resilience.admission import Admission
from mlx_pharos.resilience.api_keys import ApiKey
from mlx_pharos.resilience.errors import PharosError
from mlx_pharos.resilience.rates import Rates
from mlx_pharos.server.admittance import Admittance
from mlx_pharos.server.caller import caller_of
from mlx_pharos.server.gate import REFUSAL
from mlx_pharos.server.options import ServerOptions
from mlx_pharos.server.places import Places
from mlx_pharos.telemetry.http import STARTED_AT
from support.bare_listener import OPTIONS, listening
from support.client import CHAT, COMPLETIONS, chat_body, read_answer, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from mlx_pharos.server.listener import Listener
    from support.client import RunningServer

_GET = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Doors:
    """An application that keeps each thread that comes to it until it is let go."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.inside: list[str] = []
        self.refused_in: list[str] = []
        self.started_at: list[float] = []
        self.all: list[str] = []
        """What happened, in its order."""

    def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        """Refuse at once what is refused in any case."""
        name = threading.current_thread().name
        if REFUSAL in environ or caller_of(environ).refusal is not None:
            self.refused_in.append(name)
            self.all.append("refused")
            start("503 SERVICE UNAVAILABLE", [("Content-Length", "2")])
        else:
            self.started_at.append(environ[STARTED_AT])
            self.inside.append(name)
            self.all.append("inside")
            self.open.wait(20)
            start("200 OK", [("Content-Length", "2")])
        return [b"ok"]


def _listening(doors: Doors, admission: Any) -> contextlib.AbstractContextManager[Listener]:
    places = Places(OPTIONS, Admittance(Rates(requests=0, tokens=0), admission))
    return listening(doors, doors.open, places)


def _connect(listener: Listener) -> socket.socket:
    return socket.create_connection(("127.0.0.1", listener.port), timeout=15)


def _status(connection: socket.socket) -> int:
    head, _ = read_answer(connection)
    return int(head.split()[1])


def _post(path: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n"
    return head.encode() + b"{}"


def test_a_refusal_needs_no_thread() -> None:
    """While every thread is kept, a full server refuses generations and what is no HTTP; when it
    is full no more, the next generation goes to a thread, on the same connection.
    """
    doors, admission = Doors(), Admission(max_batch=1, max_queue=0)
    with contextlib.ExitStack() as ends:
        listener = ends.enter_context(_listening(doors, admission))
        threads = sum(listener.threads())
        for _ in range(threads):
            ends.enter_context(_connect(listener)).sendall(_GET)
        wait_until(lambda: len(doors.inside) == threads)

        admission.take(1)
        patient = ends.enter_context(_connect(listener))
        for path in (CHAT, COMPLETIONS, CHAT):
            patient.sendall(_post(path))
            assert 503 == _status(patient)
        rubbish = ends.enter_context(_connect(listener))
        rubbish.sendall(b"\x00\r\n\r\n")
        assert 503 == _status(rubbish)
        assert ["the loop"] * 4 == doors.refused_in

        admission.release(1)
        patient.sendall(_post(CHAT))
        doors.open.set()
        assert 200 == _status(patient)
        assert threads + 1 == len(doors.inside)
        assert "the loop" not in doors.inside


def test_of_many_at_once_those_without_a_place_are_answered_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """30 that come together at one place: nobody begins with that one before the 29 are refused."""
    monkeypatch.setattr("mlx_pharos.server.loop._BURST_SECONDS", 60)
    doors, admission = Doors(), Admission(max_batch=1, max_queue=0)
    stalled, come = threading.Event(), threading.Event()

    def stall() -> None:
        stalled.set()
        come.wait(10)

    with contextlib.ExitStack() as ends:
        listener = ends.enter_context(_listening(doors, admission))
        connections = [ends.enter_context(_connect(listener)) for _ in range(30)]
        wait_until(lambda: len(listener._members) > 30)
        listener._servers[0].later(stall)
        assert stalled.wait(10)
        for connection in connections:
            connection.sendall(_post(CHAT))
        come.set()
        wait_until(lambda: len(doors.all) == 30)
        assert ["refused"] * 29 + ["inside"] == doors.all
        doors.open.set()
        assert [200] + [503] * 29 == sorted(map(_status, connections))
        wait_until(lambda: admission._reserved == {})  # they wanted none, and gave them back


class Failing(Doors):
    """An application that fails."""

    def __call__(self, *_: object) -> Iterable[bytes]:
        """Fail."""
        message = "on purpose"
        raise RuntimeError(message)


def test_an_application_that_fails_keeps_no_place() -> None:
    """Whatever comes out of it, the place of the request is free again."""
    admission = Admission(max_batch=1, max_queue=0)
    with _listening(Failing(), admission) as listener:
        for _ in range(3):
            with _connect(listener) as connection:
                connection.sendall(_post(CHAT))
                assert 500 == _status(connection)
            wait_until(lambda: admission._reserved == {})


def test_a_request_begins_when_it_was_read() -> None:
    """And not when a thread comes to it: its duration and its deadlines have the wait in them."""
    doors, admission = Doors(), Admission(max_batch=64, max_queue=0)
    with contextlib.ExitStack() as ends:
        listener = ends.enter_context(_listening(doors, admission))
        threads = sum(listener.threads())
        connections = [ends.enter_context(_connect(listener)) for _ in range(threads + 1)]
        for connection in connections:
            connection.sendall(_post(CHAT))
        wait_until(lambda: len(doors.inside) == threads and listener.queued() == 1)
        read = time.monotonic()
        doors.open.set()
        assert [200] * len(connections) == list(map(_status, connections))
        assert max(doors.started_at) <= read


def _request(headers: dict[str, str]) -> Any:
    """Return a request as the I/O loop has read it."""
    return SimpleNamespace(error=None, command="POST", path=CHAT, headers=headers, caller=None)


@pytest.mark.parametrize(
    ("change", "free", "expected"),
    [
        ({}, 1, "kept"),
        ({}, 0, "queue_full"),
        ({"ORIGIN": "http://evil.example"}, 1, "not looked at"),
        ({"HOST": "evil.example"}, 1, "not looked at"),
        ({"AUTHORIZATION": "Bearer third"}, 1, "not looked at"),
        ({"AUTHORIZATION": ""}, 1, "not looked at"),
        ({"AUTHORIZATION": "Bearer fast"}, 1, "rate_limit_exceeded"),
    ],
)
def test_a_place_is_kept_for_those_alone_who_may_have_it(
    change: dict[str, str], free: int, expected: str
) -> None:
    """A page that may not use the server, somebody without a key, and who is over the rate: none of
    these can fill it by asking.
    """
    keys = tuple(ApiKey.of(name, name) for name in ("first", "fast"))
    rates, admission = Rates(requests=1, tokens=0), Admission(max_batch=1, max_queue=0)
    rates.take_request(2)
    if not free:
        admission.take(1)
    engine: Any = admission
    places = Places(ServerOptions(("tiny",), api_keys=keys), Admittance(rates, engine, keys))
    request = _request({"HOST": "localhost", "AUTHORIZATION": "Bearer first"} | change)
    places.keep(request)
    found = "not looked at" if request.caller is None else "kept"
    if request.caller is not None and request.caller.refusal is not None:
        found = request.caller.refusal.code
    assert expected == found
    assert (expected == "kept") == bool(admission._reserved)


def test_who_has_a_place_is_within_the_rate() -> None:
    """Of a burst beyond places and rate, those that come first are served: they are counted first, and
    not after those who are refused.
    """
    engine: Any = Admission(max_batch=4, max_queue=28)
    admittance = Admittance(Rates(requests=60, tokens=0, clock=float), engine)
    places = Places(ServerOptions(("tiny",)), admittance)
    ends = []
    for _ in range(200):
        request = _request({"HOST": "localhost"})
        places.keep(request)
        try:
            admittance.admit(request.caller)
        except PharosError as error:
            ends.append(error.code)
        else:
            ends.append("served")
    assert ["served"] * 32 + ["queue_full"] * 28 + ["rate_limit_exceeded"] * 140 == ends


def test_who_was_refused_is_in_the_figures_that_are_asked_for_next(
    tiny_model: Path, serving: Callable[..., Any]
) -> None:
    """Though a refusal is recorded after those that come with it: no answer is ahead of it."""
    scrape = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
    body = json.dumps(chat_body()).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    post = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    with serving(tiny_model, max_batch=1, max_queue=0) as server:
        busy = server.send(CHAT, **chat_body(max_tokens=8000, stream=True))
        wait_until(lambda: server.engine.in_flight == 1)
        for turn in range(1, 21):
            with server.connect() as connection:
                connection.sendall(post * 5 + scrape)
                answers = connection.makefile("rb")
                for _ in range(5):
                    assert b" 503 " in answers.readline()
                    _skip(answers)
                assert b" 200 " in answers.readline()
                figures = _skip(answers).decode()
            counted = re.findall(
                r'^http_server_request_duration_seconds_count\{.*="503".*\} (\d+)',
                figures,
                re.MULTILINE,
            )
            assert [str(5 * turn)] == counted
        busy.close()
        server.wait_idle()


def test_a_request_that_wants_no_place_gives_back_the_one_kept_for_it(
    tiny_model: Path, serving: Callable[..., Any]
) -> None:
    """After hundreds that were wrong, too large, refused, or left: every place is there."""
    wrong: tuple[object, ...] = (
        b"{",
        {},
        chat_body(model="other"),
        chat_body(n=4),
        chat_body(max_tokens=-1),
        chat_body(messages=[]),
    )
    with serving(tiny_model, max_batch=1, max_queue=1, keep_alive_seconds=0.05) as server:
        for body in wrong * 10:
            assert server.post(CHAT, body).status in {400, 404}
            assert 200 == server.chat(max_tokens=1).status
            server.wait_idle()
        with ThreadPoolExecutor(16) as clients:
            for _ in range(100):
                clients.submit(_leave, server)
            answers = list(clients.map(lambda body: server.post(CHAT, body), wrong * 20))
        assert {answer.status for answer in answers} <= {400, 404, 503}
        server.wait_idle()
        wait_until(lambda: server.engine._admission._reserved == {})
        server.wait_idle()
        busy = [server.send(CHAT, **chat_body(max_tokens=8000, stream=True)) for _ in range(2)]
        wait_until(lambda: server.engine.in_flight == 2)
        assert 503 == server.chat().status
        for connection in busy:
            connection.close()
        server.wait_idle()


def _leave(server: RunningServer) -> None:
    """Ask, and leave before anybody can have answered."""
    server.send(CHAT, **chat_body(max_tokens=8000)).close()


def _skip(answers: IO[bytes]) -> bytes:
    """Read the rest of an answer whose first line was read, and return its body."""
    length = 0
    while (line := answers.readline()) not in {b"\r\n", b""}:
        name, _, value = line.partition(b":")
        length = int(value) if name.lower() == b"content-length" else length
    return answers.read(length)


def test_requests_in_a_pipeline_are_refused_one_after_the_other() -> None:
    """Each has its answer, in their order, and the connection goes on."""
    doors, admission = Doors(), Admission(max_batch=1, max_queue=0)
    admission.take(1)
    with _listening(doors, admission) as listener, _connect(listener) as connection:
        connection.sendall(_post(CHAT) * 50 + _GET)
        doors.open.set()
        received = b""
        while received.count(b"ok") < 51:
            data = connection.recv(65536)
            assert data, received
            received += data
        assert [b"503"] * 50 + [b"200"] == re.findall(rb"HTTP/1.1 (\d+)", received)
        assert ["the loop"] * 50 == doors.refused_in
        assert "the loop" not in doors.inside


def test_what_is_wrong_with_a_request_is_told_before_that_the_server_is_full(
    tiny_model: Path, serving: Callable[..., Any]
) -> None:
    """A stranger does not learn how busy a server is, and a flood of one key ends at its rate."""
    keys = (ApiKey.of("one", "first"), ApiKey.of("two", "second"))
    with serving(
        tiny_model, api_keys=keys, requests_per_minute=3, max_batch=1, max_queue=1
    ) as server:
        busy = [
            server.send(CHAT, key=key, **chat_body(max_tokens=8000, stream=True))
            for key in ("first", "second")
        ]
        wait_until(lambda: server.engine.in_flight == 2)
        first = {"Authorization": "Bearer first"}
        asked = [
            ({}, (401, "invalid_api_key")),
            ({"Authorization": "Bearer third"}, (401, "invalid_api_key")),
            (first | {"Host": "evil.example"}, (403, "host_forbidden")),
            (first | {"Origin": "http://evil.example"}, (403, "origin_forbidden")),
            *[(first, (503, "queue_full"))] * 2,
            (first, (429, "rate_limit_exceeded")),
        ]
        for headers, expected in asked:
            answer = server.post(CHAT, json.dumps(chat_body()).encode(), **headers)
            assert expected == (answer.status, answer.error["code"]), headers
        for _ in range(100):  # none of them is one who waits for a place
            assert 401 == server.request("POST", CHAT).status
        last = server.post(CHAT, chat_body(), Authorization="Bearer second")
        assert (503, "queue_full") == (last.status, last.error["code"])
        assert int(last.headers["Retry-After"]) < 60
        for connection in busy:
            connection.close()
        server.wait_idle()
