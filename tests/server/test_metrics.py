"""The metrics routes of a running server: contract, access, methods, and what they measure."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema_rs
import msgspec
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from werkzeug.test import Client

from mlx_pharos.engine.protocol import Delta, Failed, Finish, Reclaim, Step, StepFigures
from mlx_pharos.resilience.api_keys import ApiKey
from mlx_pharos.server.observation import StepFolder
from mlx_pharos.telemetry.collector import MetricsCollector, make_window
from mlx_pharos.telemetry.folded import FoldedSet
from mlx_pharos.telemetry.instruments import Instruments
from mlx_pharos.telemetry.telemetry import Telemetry, TelemetryOptions
from support.client import CHAT, COMPLETIONS, chat_body, read_answer, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.client import RunningServer

SCHEMA = json.loads(
    (Path(__file__).parents[1] / "telemetry" / "metrics.schema.json").read_text(encoding="utf-8")
)
KEY = "metrics-s3cret"


@pytest.fixture(scope="module")
def keyed(tiny_model: Any, serving: Callable[..., Any]) -> Iterator[RunningServer]:
    """A server with an API key and a metrics key."""
    with serving(
        tiny_model, api_keys=(ApiKey.of("app", "api-s3cret"),), metrics_api_key=KEY
    ) as running:
        yield running


def test_the_contract_holds_from_the_first_poll(
    tiny_model: Any, serving: Callable[..., Any]
) -> None:
    """Before the first request there are zeros and real memory; afterwards, what was done."""
    with serving(tiny_model) as server:
        first = server.get("/v1/metrics").json
        jsonschema_rs.validate(SCHEMA, first)
        assert 0 == first["throughput"]["total_requests"] == first["latency"]["samples"]
        assert 0.0 == first["cache"]["hit_rate"] == first["latency"]["p99"]
        assert first["memory"]["initial_mb"] > 100
        for _ in range(3):
            assert 200 == server.chat(max_tokens=4).status
        # A record is made after the last byte: the third one may be in the making.
        wait_until(lambda: server.get("/v1/metrics").json["latency"]["samples"] == 3)
        second = server.get("/v1/metrics").json
        jsonschema_rs.validate(SCHEMA, second)
        assert 3 == second["throughput"]["total_requests"] == second["latency"]["samples"]
        assert (2, 1) == (second["cache"]["hits"], second["cache"]["misses"])
        assert 0 < second["latency"]["p50_ms"] <= second["latency"]["p99_ms"] < 10_000


def test_growth_is_since_the_model_was_loaded(tiny_model: Any, serving: Callable[..., Any]) -> None:
    """A client that asks too early is refused, and does not make the model's weights a leak."""
    with serving(tiny_model, ready=False) as server:
        os.kill(server.engine.pid, signal.SIGSTOP)
        try:
            assert 503 == server.chat(max_tokens=4).status
            assert server.get("/v1/metrics").json["memory"]["initial_mb"] == "unavailable"
        finally:
            os.kill(server.engine.pid, signal.SIGCONT)
        assert server.engine.wait_ready(20)
        memory = server.get("/v1/metrics").json["memory"]
        assert abs(memory["growth_mb"]) < 0.1 * memory["initial_mb"]


def test_a_prompt_beside_a_bad_one_has_true_figures(
    tiny_model: Any, serving: Callable[..., Any]
) -> None:
    """One prompt is refused while the other runs already: its times begin when it was accepted."""
    with serving(tiny_model) as server:
        for _ in range(5):
            body = {"model": "tiny", "prompt": ["x" * 400_000, "hi"], "max_tokens": 200}
            assert 400 == server.post(COMPLETIONS, body).status
        server.wait_idle()
        text = server.get("/metrics").body.decode()
    waits = _sum(text, r"pharos_request_queue_duration_seconds_count")
    assert _sum(text, r"pharos_request_queue_duration_seconds_sum") < 20
    assert _sum(text, r"pharos_tokens_total\{.*input") >= waits


def _sum(scrape: str, series: str) -> float:
    """Return the sum of all samples whose name and labels begin as the pattern says."""
    return sum(float(each) for each in re.findall(rf"^{series}.* (\S+)$", scrape, re.MULTILINE))


@pytest.mark.parametrize("ends_early", [False, True])
def test_the_longest_choice_is_told_beside_the_sum(
    tiny_model: Any, serving: Callable[..., Any], *, ends_early: bool
) -> None:
    """Choices of one request: their sum is the answer's length, the longest stands for itself."""
    with serving(tiny_model) as server:
        body = chat_body(max_tokens=12, n=3, temperature=1.0, seed=5)
        texts = [each["message"]["content"] for each in server.post(CHAT, body).json["choices"]]
        if ends_early:
            body["stop"] = [texts[0][:2]]
        usage = server.post(CHAT, body).json["usage"]
        name = "pharos_request_longest_choice"
        wait_until(lambda: _figure(server, f"{name}_count") == 2)
        lengths = usage["completion_tokens"], _figure(server, f"{name}_sum") - 12
        if ends_early:
            assert lengths[1] < lengths[0] < 36
        else:
            assert (36, 12) == lengths


def _figure(server: RunningServer, name: str) -> float:
    lines = server.get("/metrics").body.decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@pytest.mark.parametrize("path", ["/metrics", "/v1/metrics"])
def test_only_get_and_head(server: RunningServer, path: str) -> None:
    """Other methods are a 405 that says what is allowed; HEAD has the headers and no body."""
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        answer = server.request(method, path)
        assert 405 == answer.status
        assert "GET, HEAD" == answer.headers["Allow"]
    head = server.request("HEAD", path)
    assert (200, b"") == (head.status, head.body)
    assert head.headers["Content-Type"] == server.get(path).headers["Content-Type"]


@pytest.mark.parametrize("query", ["format=xml", "format=", "category=cpu", "category=cache,,"])
def test_an_unknown_query_is_a_400(server: RunningServer, query: str) -> None:
    """Values that do not exist are refused, by name."""
    answer = server.get(f"/v1/metrics?{query}")
    assert 400 == answer.status
    assert query.partition("=")[0] == answer.error["param"]


def test_formats_and_categories(server: RunningServer) -> None:
    """Sections can be chosen, in both formats, each with its content type."""
    chosen = server.get("/v1/metrics?category=cache,latency").json
    assert {"timestamp", "uptime_seconds", "cache", "latency"} == chosen.keys()
    text = server.get("/v1/metrics?format=prometheus&category=cache")
    assert text.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert b"\nmlx_server_cache_hits " in text.body
    assert b"latency" not in text.body


@pytest.mark.parametrize("path", ["/metrics", "/v1/metrics"])
def test_the_metrics_key_opens_and_no_other(keyed: RunningServer, path: str) -> None:
    """With a metrics key it is needed, also on this machine; the API key is another one, which
    nobody asks for here, whatever the method is.
    """
    for authorization in ("", "Bearer wrong", "Bearer api-s3cret", f"Basic {KEY}"):
        answer = keyed.request("GET", path, headers={"Authorization": authorization})
        assert (403, "metrics_forbidden") == (answer.status, answer.error["code"])
        assert KEY.encode() not in answer.body
    bearer = {"Authorization": f"Bearer {KEY}"}
    assert 200 == keyed.request("GET", path, headers=bearer).status
    assert 405 == keyed.request("POST", path, b"{}", headers=bearer).status


@pytest.mark.parametrize("path", ["/metrics", "/v1/metrics"])
def test_without_a_key_a_proxy_is_not_this_machine(server: RunningServer, path: str) -> None:
    """A proxy on this machine that speaks for somebody else is turned away."""
    answer = server.request("GET", path, headers={"X-Forwarded-For": "203.0.113.9"})
    assert (403, "metrics_forbidden") == (answer.status, answer.error["code"])


@pytest.mark.parametrize("allowed", [(), ("*",), ("box.example",)])
def test_without_a_key_a_foreign_name_is_not_this_machine(
    tiny_model: Any, serving: Callable[..., Any], allowed: tuple[str, ...]
) -> None:
    """A page whose name was pointed at a server that takes every name reads no metrics, while programs
    on the machine do, by its own names, by one that was allowed, or without any, as HTTP/1.0 has it.
    """
    statuses = {
        "evil.example": 403,
        "localhost.evil.example": 403,
        "box.example:80": 200 if "box.example" in allowed else 403,
        "localhost:80": 200,
        "127.0.0.1": 200,
        "[::1]:80": 200,
        "0.0.0.0:80": 200,
    }
    with serving(tiny_model, ready=False, host="0.0.0.0", allowed_hosts=allowed) as opened:
        for path in ("/metrics", "/v1/metrics"):
            for host, status in statuses.items():
                answer = opened.request("GET", path, headers={"Host": host})
                assert status == answer.status, (path, host)
                if status == 403 and "box.example" not in allowed:
                    assert "metrics_forbidden" == answer.error["code"]
                    assert "PHAROS_METRICS_API_KEY" in answer.error["message"]
        with opened.connect() as connection:
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert b"200" == read_answer(connection)[0].split()[1]


def test_with_a_key_every_name_is_good(tiny_model: Any, serving: Callable[..., Any]) -> None:
    """Who has the key needs no name of the machine's own."""
    settings = {"ready": False, "host": "0.0.0.0", "metrics_api_key": KEY}
    with serving(tiny_model, **settings) as opened:
        headers = {"Host": "box.example", "Authorization": f"Bearer {KEY}"}
        for path in ("/metrics", "/v1/metrics"):
            assert 200 == opened.request("GET", path, headers=headers).status


def test_the_engine_is_measured(server: RunningServer) -> None:
    """After a request every number of the engine is there, and is real."""
    assert 200 == server.chat(max_tokens=8).status
    scrape = server.get("/metrics").body.decode()
    values = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in scrape.splitlines()
        if not line.startswith("#")
    }
    assert 1 == values["pharos_engine_up"]
    assert values['process_memory_usage_bytes{process="engine"}'] > 50_000_000
    assert values['process_memory_usage_bytes{process="server"}'] > 50_000_000
    active = values['pharos_memory_usage_bytes{kind="mlx_active"}']
    assert 0 < active <= values['pharos_memory_usage_bytes{kind="mlx_peak"}']
    assert values['pharos_prompt_cache_entries{tier="ram"}'] > 0
    assert values["pharos_engine_step_duration_seconds_count"] > 7
    assert values['pharos_inter_token_duration_seconds_count{model="tiny"}'] > 6
    assert values['pharos_memory_usage_bytes{kind="mlx_cache"}'] >= 0
    (info,) = (name for name in values if name.startswith("pharos_engine_info{"))
    for label, value in {
        "model": "tiny",
        "device": "cpu",
        "mlx_version": version("mlx"),
        "mlx_lm_version": version("mlx-lm"),
    }.items():
        assert f'{label}="{value}"' in info, info


def test_kv_state_is_measured_while_a_request_holds_it(server: RunningServer) -> None:
    """Bytes that are allocated, and the share of them that holds tokens; nothing of it afterwards."""

    def figure(name: str) -> float:
        scrape = server.get("/metrics").body.decode()
        (found,) = re.findall(rf"^{name} (\S+)$", scrape, re.MULTILINE)
        return float(found)

    with server.send(CHAT, **chat_body(max_tokens=4000, stream=True)):
        wait_until(lambda: figure("pharos_kv_reserved_bytes") > 0)
        wait_until(lambda: 0 < figure("pharos_kv_usage_ratio") <= 1)
    server.wait_idle()
    wait_until(lambda: figure("pharos_kv_reserved_bytes") == 0)


def _calls_into_opentelemetry(action: Callable[[], object]) -> int:
    """Count the calls of OpenTelemetry's functions that an action makes in this thread."""
    count = 0

    def look(frame: Any, event: str, _: object) -> None:
        nonlocal count
        count += event == "call" and "/opentelemetry/" in frame.f_code.co_filename

    sys.setprofile(look)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


def test_a_longer_stream_makes_no_more_calls_into_opentelemetry(server: RunningServer) -> None:
    """What the server calls of OpenTelemetry is per request, never per token."""
    application: Any = server.listener._servers[0].application
    client = Client(application)

    def stream(tokens: int) -> None:
        body = chat_body(max_tokens=tokens, stream=True, logit_bias={"257": -100})
        with client.post(CHAT, json=body, environ_base={"REMOTE_ADDR": "127.0.0.1"}) as answer:
            assert answer.data.endswith(b"[DONE]\n\n")

    stream(4)
    # The least of three: now and then a request closes a slice of the window, or is scraped.
    short, long = (
        min(_calls_into_opentelemetry(lambda: stream(tokens)) for _ in range(3))  # noqa: B023
        for tokens in (4, 400)
    )
    assert 0 < long <= short + 20


def test_a_step_makes_no_call_into_opentelemetry() -> None:
    """The reader thread folds plain numbers: time, batch, gaps between tokens, cache lookups."""
    folded = FoldedSet()
    instruments = Instruments(
        MeterProvider(shutdown_on_exit=False).get_meter("test"), folded=folded, model="tiny"
    )
    collector = MetricsCollector(instruments, make_window())
    folder = StepFolder(instruments, collector)
    steps = [_step(number) for number in range(50)]
    assert 0 == _calls_into_opentelemetry(lambda: list(map(folder, steps)))
    gaps = instruments.inter_token.read()
    assert 98 == sum(gaps.counts)
    assert gaps.total == pytest.approx(98 * 0.01)
    assert 50 == sum(instruments.step_duration.read().counts)
    assert 100 == instruments.batch_size.read().total
    folder(_step(50, Finish(1, 0, "stop", 5, 0, 51, 0.0, 0.1, 0.2, 0.3), Failed(2, "x")))
    assert not folder._last_token


def test_requests_may_be_forgotten_while_one_fails() -> None:
    """Another thread may come in at the worst moment, here between two looks at a key."""
    instruments = Instruments(MeterProvider(shutdown_on_exit=False).get_meter("test"))
    folder = StepFolder(instruments, MetricsCollector(instruments, make_window()))

    class Interrupted(int):
        """Lets the other thread run when it is compared."""

        __hash__ = int.__hash__

        def __eq__(self, other: object) -> bool:
            folder.forget(1, 1)
            return int(self) == other

    folder(_step(0))
    folder(msgspec.structs.replace(_step(1), events=(Failed(Interrupted(2), "x"),)))
    assert not folder._last_token


def _step(number: int, *ends: Any) -> Step:
    deltas = tuple(Delta(request, 0, (65,), "A", ()) for request in (1, 2))
    return Step(
        events=(*deltas, *ends),
        at=100 + number * 0.01,
        running=2,
        prompt_cache_entries=0,
        prompt_cache_bytes=0,
        prompt_cache_hits=number,
        prompt_cache_misses=1,
        figures=StepFigures(seconds=0.01, batch_size=2),
    )


def test_lookups_go_on_after_a_restart() -> None:
    """An engine that begins to count again adds to what the one before had counted."""
    instruments = Instruments(MeterProvider(shutdown_on_exit=False).get_meter("test"))
    collector = MetricsCollector(instruments, make_window())
    folder = StepFolder(instruments, collector)
    for number in (7, 9):
        folder(_step(number))
    folder.restarted()
    for number in (11, 12):
        folder(_step(number))
    assert 21 == collector.get_cache_stats()["hits"]


def test_what_the_engine_says_of_memory_shows() -> None:
    """Freed memory, preemptions and the ledger's predictions are those of the engine's steps."""
    with Telemetry(TelemetryOptions(model="tiny")) as telemetry:
        instruments = telemetry.instruments
        folder = StepFolder(instruments, MetricsCollector(instruments, telemetry.window))
        for preemptions in (1, 3):
            figures = StepFigures(
                predicted_bytes=100,
                measured_bytes=80,
                preemptions=preemptions,
                prompt_cache_evictions=preemptions,
                prompt_cache_memory_evictions=preemptions + 1,
                reclaims=(Reclaim("prompt_cache", 900, 700), Reclaim("refuse", 700, 700)),
            )
            folder(msgspec.structs.replace(_step(0), figures=figures))
        folder.restarted()
        folder(msgspec.structs.replace(_step(0), figures=StepFigures(preemptions=2)))
        lines = telemetry.prometheus.scrape()[0].splitlines()
    assert 'pharos_memory_reclaimed_bytes_total{action="prompt_cache"} 400.0' in lines
    assert 'pharos_memory_reclaimed_bytes_total{action="refuse"} 0.0' in lines
    assert "pharos_requests_preempted_total 5.0" in lines
    assert 'pharos_prompt_cache_evictions_total{tier="ram",kind="capacity"} 3.0' in lines
    assert 'pharos_prompt_cache_evictions_total{tier="ram",kind="memory"} 4.0' in lines
    assert 'pharos_ledger_prediction_ratio_bucket{le="0.8"} 2' in lines
    assert 'pharos_ledger_prediction_ratio_bucket{le="0.7"} 0' in lines


def test_a_failing_listener_costs_no_request(
    tiny_model: Any, serving: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Should the figures of a step ever fail to be folded, requests go on, and the log says so."""

    def fail(_: Step) -> None:
        raise ZeroDivisionError

    with serving(tiny_model) as server:
        server.engine.on_step = fail
        assert [200, 200] == [server.chat().status for _ in range(2)]
    assert 1 == caplog.text.count("a listener of the engine failed")
