"""What every route has in common."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from werkzeug.test import EnvironBuilder

from mlx_pharos.engine.client import EngineState
from mlx_pharos.resilience.admission import Admission
from mlx_pharos.resilience.api_keys import ApiKey
from mlx_pharos.server.app import create_app, start_telemetry
from mlx_pharos.server.caller import CALLER, Caller
from mlx_pharos.server.options import ServerOptions
from mlx_pharos.telemetry.http import AFTERWARDS
from support.client import CHAT, chat_body

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlx_pharos.telemetry.telemetry import Telemetry
    from support.client import RunningServer


class BrokenEngine:
    """Fails as no engine should: with an error that nobody foresaw."""

    state = EngineState.READY
    loaded = None
    pid = None
    retry_after = 1.0
    reserve = Admission(max_batch=8, max_queue=0).reserve

    def submit_all(self, *_: object, **__: object) -> None:
        """Fail."""
        raise RuntimeError("/secret/path")


def test_an_unforeseen_error_is_a_500_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    """The client learns that the server failed; the log learns why."""
    engine: Any = BrokenEngine()
    options = ServerOptions(("tiny",))
    with start_telemetry(options) as telemetry:
        client = create_app(options, engine, telemetry).test_client()
        answer = client.post(CHAT, json=chat_body(), headers={"X-Request-Id": "mine"})

    assert 500 == answer.status_code
    assert "internal_error" == answer.get_json()["error"]["code"]
    assert b"secret" not in answer.data
    assert "/secret/path" in caplog.text
    assert "request mine failed" in caplog.text


@pytest.mark.parametrize("body", [b"{", b"{}", json.dumps(chat_body()).encode()])
def test_a_place_is_given_back_before_the_client_hears(body: bytes) -> None:
    """Who is told that its request was wrong, or failed, may send the next one at once."""
    engine: Any = BrokenEngine()
    options, admission = ServerOptions(("tiny",)), Admission(max_batch=1, max_queue=0)
    environ = EnvironBuilder(CHAT, method="POST", data=body, content_type="application/json")
    caller = Caller(admitted=True, reservation=admission.reserve())
    free: list[bool] = []

    def start(*_: Any) -> Any:
        found = admission.reserve()
        free.append(found is not None)

    with start_telemetry(options) as telemetry:
        app = create_app(options, engine, telemetry)
        list(app({**environ.get_environ(), CALLER: caller}, start))
    assert [True] == free


@pytest.mark.parametrize("path", ["/metrics", "/v1/metrics"])
def test_what_was_to_be_recorded_later_is_recorded_before_anybody_looks(path: str) -> None:
    """Whatever port and thread the figures are asked for in; and only once."""
    engine: Any = BrokenEngine()
    options = ServerOptions(("tiny",))
    put_off: list[Callable[[], None]] = []
    environ = EnvironBuilder("/nowhere")
    with start_telemetry(options) as telemetry:
        app = create_app(options, engine, telemetry)
        for _ in range(5):
            answer: Any = app({**environ.get_environ(), AFTERWARDS: put_off.append}, _ignore)
            list(answer)
            answer.close()
        assert 200 == app.test_client().get(path).status_code
        counts = [_not_found(telemetry)]
        for each in put_off:
            each()
        counts.append(_not_found(telemetry))
    assert [5] * 2 == counts


def _ignore(*_: Any) -> Any:
    """Nobody reads the answer's head."""


def _not_found(telemetry: Telemetry) -> int:
    """Return how many answers of 404 have been recorded."""
    text, _ = telemetry.prometheus.scrape("")
    pattern = r'^http_server_request_duration_seconds_count\{.*="404".*\} (\d+)'
    return sum(map(int, re.findall(pattern, text, re.MULTILINE)))


@pytest.mark.parametrize("path", ["/livez", "/v1/models", "/nowhere"])
def test_every_answer_has_a_request_id(server: RunningServer, path: str) -> None:
    """A client's own id comes back; without one, each request gets another."""
    ids = {server.get(path).headers["X-Request-Id"] for _ in range(2)}
    assert 2 == len(ids)
    own = server.request("GET", path, headers={"X-Request-Id": "a-B.7"})
    assert "a-B.7" == own.headers["X-Request-Id"]


@pytest.mark.parametrize("given", ["x" * 129, "a b", "é", "<script>", '"'])
def test_a_dubious_request_id_is_replaced(server: RunningServer, given: str) -> None:
    """What could break a log or a header does not get that far."""
    answer = server.request("GET", "/livez", headers={"X-Request-Id": given})

    assert re.fullmatch("req_[0-9a-f]{24}", answer.headers["X-Request-Id"])


def test_health_reports_the_cache(server: RunningServer) -> None:
    """The counts are the engine's: a second equal prompt is a hit."""
    content = "Counted by the engine and reported by the server. " * 8
    body = chat_body(messages=[{"role": "user", "content": content}])
    before = server.get("/health").json["cache"]
    for _ in range(2):
        assert 200 == server.post(CHAT, body).status
    after = server.get("/health").json["cache"]

    assert after["hits"] > before["hits"]
    assert 0 < after["bytes"] <= after["limit_bytes"]
    assert after["entries"] > 0


def test_a_path_of_many_slashes_needs_the_key_of_its_route() -> None:
    """Werkzeug finds the route, and so must the gate, whatever server is in front of them."""
    engine: Any = BrokenEngine()
    options = ServerOptions(("tiny",), api_keys=(ApiKey.of("one", "secret"),))
    with start_telemetry(options) as telemetry:
        client = create_app(options, engine, telemetry).test_client()
        for path in ("/v1/models", "//v1/models", "///v1/models"):
            answer = client.get("/", environ_overrides={"PATH_INFO": path})
            assert 401 == answer.status_code, path
