"""Whatever clients saw is what every backend shows: half a thousand mixed requests, and the sums.

The traffic runs once; each test then compares one backend with the clients.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlx_pharos.engine.engine_state import Endurance
from mlx_pharos.resilience.api_keys import ApiKey
from mlx_pharos.telemetry.collector import make_window
from mlx_pharos.telemetry.telemetry import Telemetry, TelemetryOptions
from support.access_log import access_log
from support.books import MINE, Books, seconds, seconds_until
from support.client import wait_until
from support.collector import attributes_of, collector
from support.tiny_model import write_tiny_model
from support.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.access_log import AccessLog
    from support.client import RunningServer

pytestmark = pytest.mark.timeout(60)
"""Half a thousand requests and two restarts come before the first test."""

KINDS = {
    "plain": 130,
    "completion": 80,
    "stream": 110,
    "wide": 20,
    "leave": 60,
    "leave-early": 20,
    "bad": 90,
    "half-bad": 2,
    "refused": 50,
    "report": 30,
}
KEY = "s3cret"
ROUNDED = 0.000051
"""Access lines have seconds with four digits after the point."""


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory, serving: Callable[..., Any]) -> Iterator[Books]:
    """Run the traffic, kill the engine under the last of it, and collect everything."""
    model = write_tiny_model(tmp_path_factory.mktemp("traffic"), context_length=16384)
    with access_log() as log, collector() as target:
        options = TelemetryOptions(model="tiny", otlp_endpoint=target.endpoint)
        telemetry = Telemetry(options, window=make_window())
        with serving(
            model,
            telemetry=telemetry,
            endurance=Endurance(crash_budget=1),
            api_keys=(ApiKey.of("app", KEY),),
            max_batch=8,
            max_queue=40,
        ) as server:
            traffic = Traffic(server, seed=20240229, key=KEY)
            traffic.run(KINDS, clients=20)
            wait_until(lambda: server.engine.in_flight == 0)
            traffic.run({"half-bad": 3}, clients=1)
            _kill_engines(server, traffic)
            yield _collect(server, traffic, telemetry, target, log)


def _kill_engines(server: RunningServer, traffic: Traffic) -> None:
    """Let six streams meet an engine's end: four go on in the next one and end well. Two never end,
    and meet another end, which is one more than they may. Four requests come after that.
    """
    wait_until(lambda: server.engine.in_flight == 0)
    with ThreadPoolExecutor(6) as pool:
        finite = [pool.submit(traffic.send, "long", seed) for seed in range(4)]
        endless = [pool.submit(traffic.send, "endless", seed) for seed in (8, 9)]
        wait_until(lambda: server.engine.snapshot().running == 6, 20)
        first = server.engine.pid
        os.kill(first, signal.SIGKILL)
        traffic.seen += [stream.result() for stream in finite]
        wait_until(lambda: server.engine.pid != first and server.engine.snapshot().running == 2, 20)
        os.kill(server.engine.pid, signal.SIGKILL)
        traffic.seen += [stream.result() for stream in endless]
    traffic.run({"plain": 4}, clients=4)
    assert server.engine.wait_ready(20)


def _collect(
    server: RunningServer, traffic: Traffic, telemetry: Telemetry, target: Any, log: AccessLog
) -> Books:
    wait_until(lambda: len(log.lines()) >= len(traffic.seen), 20)
    legacy = server.get("/v1/metrics").json
    scrape = server.get("/metrics").body.decode()
    wait_until(lambda: len(log.lines()) >= len(traffic.seen) + 2)
    telemetry.force_flush()
    telemetry.shutdown()
    return Books(
        traffic=traffic,
        lines=[line for line in log.lines() if line.get("route") not in MINE],
        spans=target.spans(),
        otlp=target.metrics(),
        prometheus={each.name: each.samples for each in text_string_to_metric_families(scrape)},
        legacy=legacy,
    )


def test_the_traffic_is_mixed(books: Books) -> None:
    """More than 500 requests, with every kind of end among them."""
    assert len(books.traffic.seen) > 500
    reasons = {reason for reason, _ in books.traffic.finished()}
    assert {"stop", "length", "cancelled", "refused", "error"} == reasons
    errors = {error for _, error in books.traffic.finished()}
    assert {
        "",
        "client_gone",
        "queue_full",
        "engine_died",
        "engine_unavailable",
        "model_not_found",
        "context_length_exceeded",
        "unsupported_media_type",
        "unsupported_parameter",
        "invalid_value",
    } == errors
    below = {each.status for each in books.traffic.seen if each.kind == "refused"}
    assert {400, 401, 413, 431} == below


def test_every_end_is_counted_once_everywhere(books: Books) -> None:
    """Ends by reason and error: clients = scrape = OTLP = spans = access log."""
    seen = Counter({key: count for key, count in books.traffic.finished().items() if count})
    keys = ("finish_reason", "error.type")
    labels = ("finish_reason", "error_type")
    assert seen == books.series(
        "pharos_requests_finished", *labels, name="pharos_requests_finished_total"
    )
    assert seen == books.pushed("pharos.requests.finished", *keys)
    generation = [attributes_of(span) for span, _ in books.generations()]
    assert seen == Counter(tuple(each.get(key, "") for key in keys) for each in generation)
    assert seen == Counter(
        (
            line["finish_reason"],
            "client_gone" if line["finish_reason"] == "cancelled" else line.get("error_code", ""),
        )
        for line in books.lines
        if "finish_reason" in line
    )
    assert sum(seen.values()) == books.legacy["throughput"]["total_requests"]


def test_every_request_is_counted_once_everywhere(books: Books) -> None:
    """HTTP requests by method, route and status: clients = scrape = OTLP = spans = access log.

    A client that left early saw no status; it is compared by its end alone.
    """
    early = {each.request_id for each in books.traffic.seen if not each.status}
    seen = books.traffic.answered()
    lines = Counter(
        (line["method"], line.get("route", ""), line["status"])
        for line in books.lines
        if line["request_id"] not in early
    )
    assert seen == lines
    everything = Counter(
        (line["method"], line.get("route", ""), line["status"]) for line in books.lines
    )
    name = "http_server_request_duration_seconds"
    labels = ("http_request_method", "http_route", "http_response_status_code")
    scraped = books.series(name, *labels, name=f"{name}_count")
    assert everything == _without_mine(
        {(m, r, int(s)): count for (m, r, s), count in scraped.items()}
    )
    keys = ("http.request.method", "http.route", "http.response.status_code")
    assert everything == _without_mine(books.pushed("http.server.request.duration", *keys))
    servers = [attributes_of(span) for span in books.spans if span.kind == 2]
    assert everything == _without_mine(
        Counter(tuple(each.get(key, "") for key in keys) for each in servers)
    )


def _without_mine(counted: Any) -> Counter[Any]:
    return Counter({key: count for key, count in counted.items() if key[1] not in MINE})


def test_tokens_are_those_of_the_usage(books: Books) -> None:
    """Tokens of whole answers are those that clients were told; all tokens agree everywhere."""
    fields = ("prompt_tokens", "cached_tokens", "completion_tokens")
    whole = [line for line in books.lines if line.get("finish_reason") in {"stop", "length"}]
    assert books.traffic.tokens() == tuple(
        sum(line.get(field, 0) for line in whole) for field in fields
    )
    prompt, cached, completion = (
        sum(line.get(field, 0) for line in books.lines) for field in fields
    )
    kinds = {"input_computed": prompt - cached, "input_cached": cached, "output": completion}
    expected = Counter({(kind,): count for kind, count in kinds.items() if count})
    assert expected == books.series("pharos_tokens", "type", name="pharos_tokens_total")
    assert expected == books.pushed("pharos.tokens", "type")
    names = (
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.cache_read.input_tokens",
        "gen_ai.usage.output_tokens",
    )
    spans = [attributes_of(span) for span in books.spans]
    assert (prompt, cached, completion) == tuple(
        sum(each.get(name, 0) for each in spans) for name in names
    )
    for seen in books.traffic.generations:
        line = books.line_of(seen)
        if seen.finish_reason in {"stop", "length"}:
            assert seen.completion_tokens == line.get("completion_tokens", 0)
            assert seen.prompt_tokens == line["prompt_tokens"]
        else:
            assert seen.chunks <= line.get("completion_tokens", 0)


def test_latencies_are_those_of_taken_requests(books: Books) -> None:
    """The window holds each request that was neither refused nor wrong, whatever its end."""
    codes = {"engine_died", ""}
    taken = [each for each in books.traffic.generations if each.left or each.error_code in codes]
    assert len(taken) == books.legacy["latency"]["samples"]
    whole = [each for each in taken if each.finish_reason in {"stop", "length"}]
    name = "gen_ai_server_time_to_first_token_seconds"
    assert Counter({(): len(whole)}) == books.series(name, name=f"{name}_count")
    assert Counter({(): len(whole)}) == books.pushed("gen_ai.server.time_to_first_token")


def test_refusals_are_those_that_clients_saw(books: Books) -> None:
    """What was refused before anything was started, by reason: clients = scrape = OTLP."""
    reasons = {"queue_full": "queue_full", "engine_unavailable": "engine_down"}
    seen = Counter(
        (reasons[each.error_code],)
        for each in books.traffic.seen
        if each.error_code in reasons and not each.left
    )
    assert set(reasons.values()) == {reason for (reason,) in seen}
    name = "pharos_admission_refusals"
    assert seen == books.series(name, "reason", name=f"{name}_total")
    assert seen == +books.pushed("pharos.admission.refusals", "reason")


def test_each_duration_is_the_same_everywhere(books: Books) -> None:
    """Of each request: its access line = its span = the span of its generation, and of its own
    time it waited no more than all of it.
    """
    within = {span.parent_span_id: span for span, _ in books.generations()}
    for line in books.lines:
        server = books.span_of(line)
        assert line["duration_seconds"] == pytest.approx(seconds(server), abs=ROUNDED)
        generation = within.get(server.span_id)
        assert ("finish_reason" in line) == (generation is not None)
        if generation is not None:
            assert seconds(server) == seconds(generation)
            first = seconds_until(generation, "first_token") or 0.0
            assert line.get("first_token_seconds", 0.0) == pytest.approx(first, abs=ROUNDED)
        assert 0 <= line.get("queue_seconds", 0.0) <= line["duration_seconds"]


def test_durations_sum_up_to_the_same_everywhere(books: Books) -> None:
    """The sums of all histograms of requests: scrape = OTLP = spans = access log."""
    whole = [line for line in books.lines if line.get("finish_reason") in {"stop", "length"}]
    firsts = [
        seconds_until(span, "first_token")
        for span, _ in books.generations()
        if attributes_of(span)["finish_reason"] in {"stop", "length"}
    ]
    server = [seconds(span) for span in books.spans if span.kind == 2 and not _is_mine(span)]
    generations = [seconds(span) for span, _ in books.generations()]
    lines = {
        "http.server.request.duration": [line["duration_seconds"] for line in books.lines],
        "gen_ai.server.request.duration": [
            line["duration_seconds"] for line in books.lines if "finish_reason" in line
        ],
        "gen_ai.server.time_to_first_token": [line["first_token_seconds"] for line in whole],
        "pharos.request.queue.duration": [line.get("queue_seconds", 0.0) for line in books.lines],
    }
    spans = {
        "http.server.request.duration": server,
        "gen_ai.server.request.duration": generations,
        "gen_ai.server.time_to_first_token": [each for each in firsts if each],
        "pharos.request.queue.duration": _phase(books, "queue", "prompt_cache.lookup"),
        "pharos.request.prefill.duration": _phase(books, "prefill", "first_token"),
        "pharos.request.decode.duration": _phase(books, "decode", "first_token"),
    }
    for name, figures in spans.items():
        scraped = books.scraped_seconds(f"{name.replace('.', '_')}_seconds")
        assert scraped > 0, name
        assert scraped == pytest.approx(books.pushed_seconds(name), rel=1e-9), name
        assert scraped == pytest.approx(sum(figures), abs=1e-6), name
        if name in lines:
            assert scraped == pytest.approx(sum(lines[name]), abs=ROUNDED * len(lines[name])), name


def _phase(books: Books, name: str, event: str) -> list[float]:
    """Return the seconds of a phase, of those generations that came to its end."""
    return [
        seconds(inner[name])
        for span, inner in books.generations()
        if name in inner and seconds_until(span, event) is not None
    ]


def _is_mine(span: Any) -> bool:
    return attributes_of(span).get("http.route") in MINE


def test_lookups_agree(books: Books) -> None:
    """Cache lookups: the legacy answer = the scrape = OTLP."""
    cache = books.legacy["cache"]
    expected = Counter({("hit",): cache["hits"], ("miss",): cache["misses"]})
    assert cache["hits"] > 0
    assert cache["misses"] > 0
    name = "pharos_prompt_cache_lookups"
    assert expected == books.series(name, "result", name=f"{name}_total")
    assert expected == +books.pushed("pharos.prompt_cache.lookups", "result")


def test_each_request_is_one_trace(books: Books) -> None:
    """Every request continues its caller's trace, in its spans and in its access line, and the
    spans of its generation lie within that of its HTTP request.
    """
    for seen in books.traffic.seen:
        line = books.line_of(seen)
        server = books.span_of(line)
        assert server.trace_id.hex() == line["trace_id"]
        assert seen.trace_id in {"", line["trace_id"]}
        assert server.name == f"{seen.method} {seen.route}".strip()
        inner = [
            span
            for span in books.spans
            if span.trace_id == server.trace_id and span.span_id != server.span_id
        ]
        assert bool(inner) == seen.generates
        if seen.finish_reason in {"stop", "length"} and seen.generates:
            assert {"queue", "prefill", "decode"} <= {span.name for span in inner}
            for span in inner:
                assert server.start_time_unix_nano <= span.start_time_unix_nano
                assert span.end_time_unix_nano <= server.end_time_unix_nano


def test_resumed_requests_are_counted_as_such(books: Books) -> None:
    """Six requests went on in another engine: the scrape = OTLP = the spans' events, and restarts."""
    lost = Counter({("SIGKILL",): 6})
    name = "pharos_requests_resumed"
    assert lost == books.series(name, "reason", name=f"{name}_total")
    assert lost == +books.pushed("pharos.requests.resumed", "reason")
    events = [event.name for span in books.spans for event in span.events]
    assert (6, 6) == (events.count("engine.lost"), events.count("resumed"))
    name = "pharos_engine_restarts"
    assert Counter({("SIGKILL",): 2}) == books.series(name, "reason", name=f"{name}_total")


def test_nothing_is_dropped(books: Books) -> None:
    """The collector was there all the time: nothing was lost on the way."""
    dropped = books.prometheus.get("pharos_telemetry_dropped", [])
    assert 0 == sum(sample.value for sample in dropped)
