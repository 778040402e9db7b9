"""What the parser refuses is told like all else: one line, one span and one count for each answer."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from waitress.receiver import FixedStreamReceiver

from mlx_pharos.engine.client import EngineClient
from mlx_pharos.resilience.api_keys import ApiKey
from mlx_pharos.server import parser
from mlx_pharos.server.gate import Gate
from mlx_pharos.telemetry.collector import make_window
from mlx_pharos.telemetry.telemetry import Telemetry, TelemetryOptions
from support.access_log import access_log
from support.client import CHAT, read_answer, wait_until
from support.collector import attributes_of, collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.access_log import AccessLog
    from support.client import RunningServer
    from support.collector import Collector

ORIGIN = "https://page.example"
TRACE = "0af7651916cd43dd8448eb211c80319c"
MARKS = f"traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\nX-Request-Id: "
POST = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nOrigin: {ORIGIN}\r\n"
LIVE = "GET /livez HTTP/1.1\r\nHost: localhost\r\n"


@dataclass(frozen=True)
class Case:
    """A request without its marks, and what is to be seen of it everywhere."""

    begin: str
    status: int
    code: str
    method: str = "_OTHER"
    route: str = ""
    end: str = "\r\n\r\n"

    def data(self, request_id: str) -> bytes:
        """Return its bytes."""
        return (self.begin + MARKS + request_id + self.end).encode("latin-1")


CASES = {
    "long body": Case(
        f"{POST}Content-Length: 99999999\r\n", 413, "body_too_large", "POST", CHAT
    ),
    "body for a probe": Case(
        f"POST{LIVE.removeprefix('GET')}Content-Length: 65537\r\n", 413, "body_too_large", "POST"
    ),
    "many slashes": Case(
        f"{POST.replace('/v1', '//v1')}Content-Length: 9\r\n", 401, "invalid_api_key", "POST", CHAT
    ),
    "wrong key": Case(
        f"{POST}Content-Length: 9\r\nAuthorization: Bearer x\r\n", 401, "invalid_api_key", "POST", CHAT
    ),
    "no route": Case(
        f"{POST.replace('chat', 'chats')}Content-Length: 9\r\n", 401, "invalid_api_key", "POST"
    ),
    "bad chunk": Case(
        f"{POST}Authorization: Bearer right\r\nTransfer-Encoding: chunked\r\n",
        400, "invalid_value", "POST", CHAT, "\r\n\r\nxyz\r\n",
    ),
    "no host": Case("GET /livez HTTP/1.1\r\n", 400, "invalid_value", "GET", "/livez"),
    "two hosts": Case(f"{LIVE}Host: x\r\n", 400, "invalid_value", "GET", "/livez"),
    "strange host": Case("GET /livez HTTP/1.1\r\nHost: \xff[\r\nA : b\r\n", 400, "invalid_value"),
    "bad length": Case(
        "BREW /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n", 400, "invalid_value"
    ),
    "bad address": Case(
        "GET http://[::1 HTTP/1.1\r\nHost: localhost\r\n", 400, "invalid_value", "GET"
    ),
    "coding": Case(f"{LIVE}Transfer-Encoding: gzip\r\n", 400, "invalid_value"),
    "fold": Case(f"{LIVE}A: b\r\n c\r\n", 400, "invalid_value"),
    "rubbish": Case("\xff\x00\r\n", 400, "invalid_value"),
    "large headers": Case(
        LIVE, 431, "headers_too_large", end="\r\nA: " + "a" * 70_000 + "\r\n\r\n"
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Watched:
    """A server, and all that looks at it."""

    server: RunningServer
    log: AccessLog
    telemetry: Telemetry
    collector: Collector

    def counted(self, status: int) -> dict[tuple[str, ...], int]:
        """Count requests of a status by method, route and error, as a scrape has them."""
        text = self.server.get("/metrics").body.decode()
        name = "http_server_request_duration_seconds"
        labels = ("http_request_method", "http_route", "error_type")
        return {
            tuple(sample.labels.get(label, "") for label in labels): int(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"{name}_count"
            and sample.labels["http_response_status_code"] == str(status)
        }

    def line(self, request_id: str) -> dict[str, Any]:
        """Wait for a request's access line; there is but one."""
        wait_until(lambda: bool(self.log.of(request_id)))
        (found,) = self.log.of(request_id)
        return found

    def span(self, span_id: str) -> Any:
        """Wait for a span; it ends a moment after the access line."""
        found: dict[str, Any] = {}

        def came() -> bool:
            self.telemetry.force_flush()
            found.update({each.span_id.hex(): each for each in self.collector.spans()})
            return span_id in found

        wait_until(came)
        return found[span_id]


@pytest.fixture(scope="module")
def watched(tiny_model: Any, serving: Callable[..., Any]) -> Iterator[Watched]:
    """A server with a key and an allowed origin; no model is waited for."""
    with access_log() as log, collector() as target:
        telemetry = Telemetry(
            TelemetryOptions(model="tiny", otlp_endpoint=target.endpoint), window=make_window()
        )
        with serving(
            tiny_model,
            ready=False,
            telemetry=telemetry,
            api_keys=(ApiKey.of("app", "right"),),
            allowed_origins=(ORIGIN,),
        ) as server:
            yield Watched(server, log, telemetry, target)


@pytest.mark.parametrize("name", CASES)
def test_a_refused_request_is_told_everywhere(watched: Watched, name: str) -> None:
    """The client's answer, the access line, the span and the series are of one request."""
    case, request_id = CASES[name], f"refused-{name.replace(' ', '-')}"
    key = (case.method, case.route, case.code)
    before = watched.counted(case.status).get(key, 0)
    with watched.server.connect() as connection:
        connection.sendall(case.data(request_id))
        head, body = read_answer(connection)
        assert b"" == connection.recv(65536)

    assert f"{case.status}".encode() == head.split()[1]
    assert case.code == json.loads(body)["error"]["code"]
    assert f"X-Request-Id: {request_id}".lower() in head.decode().lower()
    assert b"connection: close" in head.lower()
    line = watched.line(request_id)
    seen = line["method"], line.get("route", ""), line["status"], line["error_code"]
    assert (case.method, case.route, case.status, case.code) == seen
    assert TRACE == line["trace_id"]
    assert before + 1 == watched.counted(case.status)[key]
    span = watched.span(line["span_id"])
    assert f"{case.method} {case.route}".strip() == span.name
    told = attributes_of(span)
    assert request_id == told["pharos.request.id"]
    assert case.status == told["http.response.status_code"]
    assert case.code == told["error.type"]


def test_a_refusal_has_the_headers_of_every_answer(watched: Watched) -> None:
    """A page of an allowed origin may read it, and a 401 says how to come in."""
    with watched.server.connect() as connection:
        connection.sendall(CASES["wrong key"].data("mine"))
        head = read_answer(connection)[0].decode().lower()
    assert f"access-control-allow-origin: {ORIGIN}" in head
    assert "www-authenticate: bearer" in head
    assert "content-type: application/json" in head


@pytest.mark.parametrize(
    ("name", "wrong", "status"),
    [
        ("no-host", b"", 400),
        ("coding", b"Host: localhost\r\nTransfer-Encoding: gzip\r\n", 400),
        ("large", b"Host: localhost\r\nX-Large: " + b"x" * 70_000 + b"\r\n", 431),
    ],
    ids=["no-host", "coding", "large"],
)
def test_head_gets_no_body_with_a_refusal(
    watched: Watched, name: str, wrong: bytes, status: int
) -> None:
    """Its length is told, and nothing follows the headers."""
    with watched.server.connect() as connection:
        mark = f"X-Request-Id: head-{name}\r\n".encode()
        connection.sendall(b"HEAD /livez HTTP/1.1\r\n" + mark + wrong + b"\r\n")
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(65536):
                received += chunk
    assert received.partition(b" ")[2].startswith(b"%d " % status)
    assert received.endswith(b"\r\n\r\n")
    line = watched.line(f"head-{name}")
    assert ("HEAD", status) == (line["method"], line["status"])


def test_a_refused_request_begins_with_its_first_byte(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its duration holds what its client took to send it."""
    clock = time.monotonic
    monkeypatch.setattr(parser, "time", type("Earlier", (), {"monotonic": lambda: clock() - 7}))
    with watched.server.connect() as connection:
        connection.sendall(CASES["no host"].data("slow"))
        read_answer(connection)
    assert 7 < watched.line("slow")["duration_seconds"] < 12


def test_a_body_without_room_is_told_as_well(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full under a body: the client is told when to come back."""

    def no_room(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(FixedStreamReceiver, "received", no_room)
    answer = watched.server.post(CHAT, b"{}", Authorization="Bearer right", X_Request_Id="full")
    assert (503, "storage_full") == (answer.status, answer.error["code"])
    assert "10" == answer.headers["Retry-After"]
    line = watched.line("full")
    assert ("POST", CHAT, "storage_full") == (line["method"], line["route"], line["error_code"])


def test_an_application_that_fails_is_told_once(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What failed has been recorded; the words that are left to say are no request of their own."""

    def fail(*_: Any) -> None:
        raise RuntimeError("the application is broken")

    def failures() -> int:
        return len([line for line in watched.log.lines() if line["status"] == 500])

    cases: list[tuple[str, str, type, str]] = [
        ("/openapi.json", "GET", Flask, "request_context"),
        ("", "_OTHER", Gate, "_refuse"),
    ]
    for path, method, owner, name in cases:
        before = failures()
        with monkeypatch.context() as patch, watched.server.connect() as connection:
            patch.setattr(owner, name, fail)
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            head, body = read_answer(connection)
            assert b"" == connection.recv(65536)
        assert head.startswith((b"HTTP/1.1 500 ", b"HTTP/1.0 500 "))
        assert "internal_error" == json.loads(body)["error"]["code"]
        assert before + 1 == failures()
        assert method == watched.log.lines()[-1]["method"]


def test_an_operation_that_fails_is_told_as_any_other_failure(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken probe is a 500 with its route in the log, and the connection goes on."""

    def fail(*_: Any) -> None:
        raise RuntimeError("the operation is broken")

    with watched.server.connect() as connection:
        for expected in (b" 500 ", b" 200 "):
            with monkeypatch.context() as patch:
                if expected == b" 500 ":
                    patch.setattr(EngineClient, "snapshot", fail)
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                head, body = read_answer(connection)
            assert expected in head.partition(b"\r\n")[0]
            assert b"broken" not in body
    line = next(each for each in reversed(watched.log.lines()) if each["status"] == 500)
    assert ("GET", "/health") == (line["method"], line["route"])


def test_the_id_of_a_broken_request_is_its_own(watched: Watched) -> None:
    """Two ids are none, and what follows the headers is no header."""
    ids = set()
    for data in (
        f"{LIVE}X-Request-Id: one\r\nX-Request-Id: two\r\nA: b\r\n c\r\n\r\n",
        f"{LIVE}A: b\r\n c\r\n\r\n\r\nX-Request-Id: three\r\n\r\n",
        "rubbish\r\n\r\n",
    ):
        with watched.server.connect() as connection:
            connection.sendall(data.encode())
            head = read_answer(connection)[0].decode()
        (found,) = re.findall("(?i)x-request-id: (.*)\r?", head)
        assert re.fullmatch("req_[0-9a-f]{24}", found.strip())
        assert 400 == watched.line(found.strip())["status"]
        ids.add(found)
    assert 3 == len(ids)


@given(data=st.binary(max_size=60), place=st.integers(0, len(LIVE)))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_answer_has_its_line_whatever_was_sent(
    watched: Watched, data: bytes, place: int
) -> None:
    """Bytes anywhere in a request: as many lines as answers, and none of them is a 5xx."""
    before = len(watched.log.lines())
    head = LIVE.encode()
    with watched.server.connect() as connection:
        connection.sendall(head[:place] + data + head[place:] + b"\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    answers = re.findall(rb"HTTP/1\.[01] (\d+) ", received)
    assert all(b"200" <= status < b"500" for status in answers)
    wait_until(lambda: len(watched.log.lines()) >= before + len(answers))
    assert before + len(answers) == len(watched.log.lines())
