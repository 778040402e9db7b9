"""Whatever clients saw is what every backend shows: more than half a thousand mixed requests, with
every kind of refusal among them, and the sums.

The traffic runs once, in stages; then each test compares one backend with the clients.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from mlx_pharos.telemetry.attributes import OTHER, REFUSAL_REASON
from support import ordeal
from support.books import SERVER, Books, error_of, seconds, seconds_until, without_mine
from support.client import wait_until
from support.collector import attributes_of
from support.stage import Stage, set_stage
from support.table import side_by_side
from support.traffic import REFUSALS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.timeout(100)
"""Of each stage, which has hundreds of requests or some restarts: every stage has a test of its own."""

KINDS = {
    "plain": 120,
    "completion": 80,
    "stream": 100,
    "wide": 12,
    "leave": 60,
    "leave-early": 20,
    "bad": 80,
    "half-bad": 2,
    "refused": 70,
    "too-long": 6,
    "never-fits": 6,
    "late": 6,
    "late-stream": 6,
    "report": 30,
}
ROUNDED = 0.000051
"""Access lines have seconds with four digits after the point."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, serving: Callable[..., Any]) -> Iterator[Stage]:
    """A server that has bounds for everything."""
    with set_stage(tmp_path_factory.mktemp("traffic"), serving, seed=20240229) as found:
        yield found


@pytest.fixture(scope="module")
def mixed(stage: Stage) -> Stage:
    """After half a thousand requests of twenty clients."""
    stage.traffic.run(KINDS, clients=20)
    wait_until(lambda: stage.server.engine.in_flight == 0)
    # One after the other: who leaves without an answer must not have been refused meanwhile.
    stage.traffic.run({"half-bad": 3, "leave-plain": 12}, clients=1)
    wait_until(lambda: stage.server.engine.in_flight == 0)
    return stage


@pytest.fixture(scope="module")
def refused(mixed: Stage) -> Stage:
    """After every refusal of a server that is well."""
    ordeal.crowd(mixed.server, mixed.traffic)
    ordeal.overdue(mixed.traffic)
    ordeal.starve(mixed.server, mixed.traffic)
    return mixed


@pytest.fixture(scope="module")
def killed(refused: Stage) -> Stage:
    """After the deaths of two engines, for no reason that was in a request."""
    ordeal.kill_engines(refused.server, refused.traffic)
    return refused


@pytest.fixture(scope="module")
def poisoned(killed: Stage) -> Stage:
    """After the deaths of two more, for one that was."""
    ordeal.poison(killed.server, killed.traffic)
    return killed


@pytest.fixture(scope="module")
def books(poisoned: Stage) -> Books:
    """All books, after the server has shut down."""
    ordeal.drain(poisoned.server, poisoned.traffic)
    return poisoned.books()


def test_the_traffic_is_mixed(mixed: Stage) -> None:
    """More than 500 requests, of every kind that a server in health meets."""
    seen = mixed.traffic.seen
    assert len(seen) > 500
    assert {*KINDS, "leave-plain"} == {each.kind for each in seen}
    assert {"stop", "length", "cancelled"} < {reason for reason, _ in mixed.traffic.finished()}
    unread = {each.status for each in seen if each.kind == "refused"}
    assert {400, 401, 413, 431} == unread


def test_every_refusal_is_met(refused: Stage) -> None:
    """For the rate, the queue, its time, the memory of a request and that of the machine; and too
    little time for the answer, before its first byte and after some.
    """
    told = {(each.status, each.error_code) for each in refused.traffic.seen}
    assert {
        (400, "request_too_large"),
        (413, "body_too_large"),
        (429, "rate_limit_exceeded"),
        (503, "memory"),
        (503, "queue_full"),
        (503, "queue_timeout"),
        (504, "deadline_exceeded"),
    } <= told
    codes = {each.error_code for each in refused.traffic.seen if each.chunks}
    assert "deadline_exceeded" in codes


def test_engines_die(killed: Stage) -> None:
    """Requests that were in one death end well, those in two do not; others come while there is no
    engine.
    """
    seen = killed.traffic.seen
    assert {"length"} == {each.finish_reason for each in seen if each.kind == "long"}
    assert {"engine_died"} == {each.error_code for each in seen if each.kind == "endless"}
    assert "engine_unavailable" in {each.error_code for each in seen}


def test_a_prompt_kills_engines(poisoned: Stage) -> None:
    """It is in one death more than it may be; sent again, it is not tried."""
    codes = [each.error_code for each in poisoned.traffic.seen if each.kind == "deadly"]
    assert ["engine_died", "engine_died"] == codes


def test_every_end_is_met(books: Books) -> None:
    """The server shut down: newcomers were refused, and the stream that ran was cut off in words."""
    reasons = {reason for reason, _ in books.traffic.finished()}
    assert {"stop", "length", "cancelled", "refused", "error"} == reasons
    errors = {error for _, error in books.traffic.finished()}
    assert {
        "",
        "client_gone",
        "context_length_exceeded",
        "deadline_exceeded",
        "draining",
        "engine_died",
        "engine_unavailable",
        "invalid_value",
        "memory",
        "model_not_found",
        "queue_full",
        "queue_timeout",
        "rate_limit_exceeded",
        "request_too_large",
        "shutdown",
        "unsupported_media_type",
        "unsupported_parameter",
    } == errors
    cut = [each for each in books.traffic.seen if each.error_code == "shutdown"]
    assert ["endless"] == [each.kind for each in cut]


def test_every_end_is_counted_once_everywhere(books: Books) -> None:
    """Ends by reason and error: clients = scrape = OTLP = spans = access log. Prints them side by
    side, for `pytest -rP`.
    """
    seen = Counter({key: count for key, count in books.traffic.finished().items() if count})
    keys = ("finish_reason", "error.type")
    labels = ("finish_reason", "error_type")
    total = "pharos_requests_finished_total"
    generations = [attributes_of(span) for span, _ in books.generations()]
    lines = [line for line in books.lines if "finish_reason" in line]
    columns: dict[str, Counter[Any]] = {
        "clients": seen,
        "/metrics": books.series("pharos_requests_finished", *labels, name=total),
        "OTLP": books.pushed("pharos.requests.finished", *keys),
        "spans": Counter(tuple(each.get(key, "") for key in keys) for each in generations),
        "log": Counter((line["finish_reason"], error_of(line)) for line in lines),
    }
    print(side_by_side(columns))  # noqa: T201 - for whoever wants to see it
    assert dict.fromkeys(columns, seen) == columns
    assert sum(seen.values()) == books.legacy["throughput"]["total_requests"]


def test_every_request_is_counted_once_everywhere(books: Books) -> None:
    """HTTP requests by method, route, status and error: clients = scrape = OTLP = spans = access
    log.
    """
    seen = books.traffic.answered()
    assert seen == Counter(
        (line["method"], line.get("route", ""), line["status"], error_of(line))
        for line in books.lines
    )
    name = "http_server_request_duration_seconds"
    labels = ("http_request_method", "http_route", "http_response_status_code", "error_type")
    scraped = books.series(name, *labels, name=f"{name}_count")
    assert seen == without_mine(
        {(m, r, int(s), e): count for (m, r, s, e), count in scraped.items()}
    )
    keys = ("http.request.method", "http.route", "http.response.status_code", "error.type")
    assert seen == without_mine(books.pushed("http.server.request.duration", *keys))
    servers = [attributes_of(span) for span in books.spans if span.kind == SERVER]
    assert seen == Counter(tuple(each.get(key, "") for key in keys) for each in servers)


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
    codes = {"deadline_exceeded", "engine_died", "shutdown", ""}
    taken = [each for each in books.traffic.generations if each.left or each.error_code in codes]
    assert len(taken) == books.legacy["latency"]["samples"]
    whole = [each for each in taken if each.finish_reason in {"stop", "length"}]
    name = "gen_ai_server_time_to_first_token_seconds"
    assert Counter({(): len(whole)}) == books.series(name, name=f"{name}_count")
    assert Counter({(): len(whole)}) == books.pushed("gen_ai.server.time_to_first_token")


def test_refusals_are_those_that_clients_saw(books: Books) -> None:
    """What was refused before anything was started, for each reason that there is: clients = scrape
    = OTLP = access log.
    """
    seen = Counter({(reason,): count for reason, count in books.traffic.refusals().items()})
    assert {*REFUSAL_REASON.values} - {OTHER} == {reason for (reason,) in seen}
    name = "pharos_admission_refusals"
    assert seen == books.series(name, "reason", name=f"{name}_total")
    assert seen == +books.pushed("pharos.admission.refusals", "reason")
    assert seen == Counter(
        (REFUSALS[line["error_code"]],)
        for line in books.lines
        if line.get("error_code") in REFUSALS and not line.get("prompt_tokens")
    )


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
    server = [seconds(span) for span in books.spans if span.kind == SERVER]
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
        "pharos.request.queue.duration": books.phase_seconds("queue"),
        "pharos.request.prefill.duration": books.phase_seconds("prefill"),
        "pharos.request.decode.duration": books.phase_seconds("decode"),
    }
    for name, figures in spans.items():
        scraped = books.scraped_seconds(f"{name.replace('.', '_')}_seconds")
        assert scraped > 0, name
        assert scraped == pytest.approx(books.pushed_seconds(name), rel=1e-9), name
        assert scraped == pytest.approx(sum(figures), abs=1e-6), name
        if name in lines:
            assert scraped == pytest.approx(sum(lines[name]), abs=ROUNDED * len(lines[name])), name


def test_what_was_cut_off_says_by_what(books: Books) -> None:
    """The phase in which a request was has its error and ends with it; no phase of a whole answer does."""
    errors = set()
    for span, inner in books.generations():
        given = attributes_of(span)
        cut = [each for each in inner.values() if "error.type" in attributes_of(each)]
        assert len(cut) <= (given["finish_reason"] not in {"stop", "length"})
        for each in cut:
            assert {"error.type": given["error.type"]} == attributes_of(each)
            assert each.start_time_unix_nano == max(x.start_time_unix_nano for x in inner.values())
            assert span.start_time_unix_nano <= each.start_time_unix_nano
            assert each.end_time_unix_nano <= span.end_time_unix_nano
            errors.add(given["error.type"])
    assert {
        "client_gone",
        "deadline_exceeded",
        "engine_died",
        "queue_timeout",
        "shutdown",
    } <= errors


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
    """It is its caller's, in the spans and the access line; a generation lies within its request."""
    for seen in books.traffic.seen:
        line = books.line_of(seen)
        server = books.span_of(line)
        inner = books.within(server)
        assert seen.trace_id in {"", line["trace_id"]}
        assert server.name == f"{seen.method} {seen.route}".strip()
        assert bool(inner) == seen.generates
        if seen.finish_reason in {"stop", "length"} and seen.generates:
            assert {"queue", "prefill", "decode"} <= {*inner}
            for span in inner.values():
                assert server.start_time_unix_nano <= span.start_time_unix_nano
                assert span.end_time_unix_nano <= server.end_time_unix_nano


def test_no_time_contradicts_the_clients_watch(books: Books) -> None:
    """Of each request, by the one clock of clients, server and engine: nothing is begun before it
    was sent, and no answer, text or end comes to a client before the server says that it was there.
    """
    for seen in books.traffic.seen:
        for what, (before, after) in books.ordered(seen).items():
            assert before <= after, (what, seen)


def test_resumed_requests_are_counted_as_such(books: Books) -> None:
    """Six requests went on in another engine, and the one that killed two: the scrape = OTLP = the
    spans' events; and the restarts are four.
    """
    lost = Counter({("SIGKILL",): 7})
    name = "pharos_requests_resumed"
    assert lost == books.series(name, "reason", name=f"{name}_total")
    assert lost == +books.pushed("pharos.requests.resumed", "reason")
    events = [event.name for span in books.spans for event in span.events]
    assert (7, 7) == (events.count("engine.lost"), events.count("resumed"))
    name = "pharos_engine_restarts"
    restarts = Counter({("SIGKILL",): 4})
    assert restarts == books.series(name, "reason", name=f"{name}_total")
    assert restarts == +books.pushed("pharos.engine.restarts", "reason")


def test_nothing_is_dropped(books: Books) -> None:
    """The collector was there all the time: nothing was lost on the way."""
    dropped = books.prometheus.get("pharos_telemetry_dropped", [])
    assert 0 == sum(sample.value for sample in dropped)
