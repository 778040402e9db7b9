"""Whatever clients saw is what every backend shows: half a thousand mixed requests, and the sums.

The traffic runs once; each test then compares one backend with the clients.
"""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import statistics
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlx_pharos.engine.engine_state import Endurance
from mlx_pharos.telemetry.collector import make_window
from mlx_pharos.telemetry.log import configure_log
from mlx_pharos.telemetry.telemetry import Telemetry, TelemetryOptions
from support.client import wait_until
from support.collector import attributes_of, collector
from support.tiny_model import write_tiny_model
from support.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.client import RunningServer
    from support.traffic import Seen

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
    "report": 30,
}
MINE = {"/metrics", "/v1/metrics"}


@dataclass
class Books:
    """The clients' side and all others, once the traffic is over."""

    traffic: Traffic
    lines: list[dict[str, Any]]
    spans: list[Any]
    otlp: dict[str, Any]
    prometheus: dict[str, list[Any]]
    legacy: dict[str, Any]

    def line_of(self, seen: Seen) -> dict[str, Any]:
        """The access line of a request."""
        (found,) = [line for line in self.lines if line["request_id"] == seen.request_id]
        return found

    def span_of(self, seen: Seen, start: str) -> Any:
        """The span of a request whose name starts so."""
        (found,) = [
            span
            for span in self.spans
            if span.trace_id.hex() == seen.trace_id and span.name.startswith(start)
        ]
        return found

    def series(self, family: str, *labels: str, name: str = "") -> Counter[tuple[str, ...]]:
        """Sum a family of the scrape by some of its labels."""
        found: Counter[tuple[str, ...]] = Counter()
        for sample in self.prometheus[family]:
            if sample.name == (name or family) and sample.value:
                found[tuple(sample.labels.get(label, "") for label in labels)] += int(sample.value)
        return found

    def pushed(self, name: str, *keys: str) -> Counter[tuple[Any, ...]]:
        """Sum a metric that the collector received by some of its attributes."""
        metric = self.otlp[name]
        found: Counter[tuple[Any, ...]] = Counter()
        for point in getattr(metric, metric.WhichOneof("data")).data_points:
            given = attributes_of(point)
            value = point.as_int if hasattr(point, "as_int") else point.count
            found[tuple(given.get(key, "") for key in keys)] += int(value)
        return found


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory, serving: Callable[..., Any]) -> Iterator[Books]:
    """Run the traffic, kill the engine under the last of it, and collect everything."""
    model = write_tiny_model(tmp_path_factory.mktemp("traffic"), context_length=16384)
    lines = io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    configure_log(style="json", stream=lines)
    try:
        with collector() as target:
            options = TelemetryOptions(model="tiny", otlp_endpoint=target.endpoint)
            telemetry = Telemetry(options, window=make_window())
            with serving(
                model,
                telemetry=telemetry,
                endurance=Endurance(crash_budget=1),
                max_batch=8,
                max_queue=40,
            ) as server:
                traffic = Traffic(server, seed=20240229)
                traffic.run(KINDS, clients=20)
                _kill_engines(server, traffic)
                yield _collect(server, traffic, telemetry, target, lines)
    finally:
        root.handlers, root.level = before


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
    server: RunningServer, traffic: Traffic, telemetry: Telemetry, target: Any, lines: io.StringIO
) -> Books:
    def lines_now() -> list[dict[str, Any]]:
        parsed = map(json.loads, lines.getvalue().splitlines())
        return [line for line in parsed if line["logger"] == "mlx_pharos.requests"]

    wait_until(lambda: len(lines_now()) >= len(traffic.seen), 20)
    legacy = server.get("/v1/metrics").json
    scrape = server.get("/metrics").body.decode()
    wait_until(lambda: len(lines_now()) >= len(traffic.seen) + 2)
    telemetry.force_flush()
    telemetry.shutdown()
    return Books(
        traffic=traffic,
        lines=[line for line in lines_now() if line.get("route") not in MINE],
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


def test_every_end_is_counted_once_everywhere(books: Books) -> None:
    """Ends by reason and error: clients = scrape = OTLP = spans = access log."""
    seen = Counter({key: count for key, count in books.traffic.finished().items() if count})
    keys = ("finish_reason", "error.type")
    labels = ("finish_reason", "error_type")
    assert seen == books.series(
        "pharos_requests_finished", *labels, name="pharos_requests_finished_total"
    )
    assert seen == books.pushed("pharos.requests.finished", *keys)
    generation = [
        attributes_of(span) for span in books.spans if span.name.startswith(("chat ", "text_comp"))
    ]
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
        assert seen.trace_id == line["trace_id"]
        server = books.span_of(seen, seen.method)
        assert line["span_id"] == server.span_id.hex()
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


def test_durations_are_the_clients(
    tmp_path_factory: pytest.TempPathFactory, serving: Callable[..., Any], tiny_model: Any
) -> None:
    """One request at a time: the server's durations are the client's within 5 ms.

    The client's clock begins when it sends and ends with the last byte that it
    reads; the server's begins when a thread takes the request and ends when the
    last byte is written. Client, server and engine share a small machine, where a
    request that loses its turn waits for tens of milliseconds on either side; so it
    is the median difference that has to be within 5 ms, in the best of three rounds.
    No token ever came to the client before it was made.
    """
    lines = io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    configure_log(style="json", stream=lines)
    try:
        with serving(tiny_model) as server:
            rounds = [_differences(server, lines, seed) for seed in range(3)]
    finally:
        root.handlers, root.level = before
    assert min(first for _, firsts in rounds for first in firsts) > -0.001
    assert min(_typical(whole) for whole, _ in rounds) < 0.005
    assert min(_typical(firsts) for _, firsts in rounds) < 0.005


def _differences(
    server: RunningServer, lines: io.StringIO, seed: int
) -> tuple[list[float], list[float]]:
    """Return the client's less the server's seconds, of whole requests and of first tokens."""
    traffic = Traffic(server, seed)
    traffic.run({"plain": 20, "stream": 30, "report": 10, "bad": 10}, clients=1)

    def by_id() -> dict[str, dict[str, Any]]:
        parsed = map(json.loads, lines.getvalue().splitlines())
        return {line["request_id"]: line for line in parsed if "request_id" in line}

    wait_until(lambda: by_id().keys() >= {each.request_id for each in traffic.seen})
    found = by_id()
    whole = [
        each.ended_at - each.sent_at - found[each.request_id]["duration_seconds"]
        for each in traffic.seen
    ]
    first = [
        each.first_at - each.sent_at - found[each.request_id]["first_token_seconds"]
        for each in traffic.seen
        if each.first_at
    ]
    return whole, first


def _typical(differences: list[float]) -> float:
    return statistics.median(map(abs, differences))
