"""A server, the collector and what is behind it, with the files of deploy/: what arrives where."""

from __future__ import annotations

import json
import secrets
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from mlx_pharos.telemetry.catalog import BY_NAME
from support.backend import DEPLOY
from support.polling import fetch_json, until
from support.stack import CLIENT_SPAN, SPANS, ask

if TYPE_CHECKING:
    from support.stack import Stack

pytestmark = pytest.mark.timeout(150)


def _attributes(span: dict[str, Any]) -> dict[str, Any]:
    """Return attributes of OTLP's JSON as plain values, without what Jaeger adds of its own."""

    def plain(value: dict[str, Any]) -> Any:
        ((kind, held),) = value.items()
        if kind == "arrayValue":
            return [plain(each) for each in held["values"]]
        return int(held) if kind == "intValue" else held

    return {
        each["key"]: plain(each["value"])
        for each in span["attributes"]
        if not each["key"].startswith("@jaeger@")
    }


def _spans_by_name(running: Stack, trace: str) -> dict[str, dict[str, Any]]:
    """Return the spans of a trace once Jaeger has as many as a chat makes."""
    spans = until(
        lambda: running.jaeger.spans(trace),
        lambda found: len(found) >= len(SPANS),
        what=f"trace {trace} is in Jaeger",
    )
    assert SPANS == sorted(span["name"] for span in spans)
    return {span["name"]: span for span in spans}


def test_a_chats_trace_is_in_jaeger(running: Stack) -> None:
    """A chat's trace is found by its id, with all spans below the caller's and all attributes."""
    chat = ask(running.served, "What is a lighthouse?")
    spans = _spans_by_name(running, chat.trace)
    http, generation = spans["POST /v1/chat/completions"], spans["chat tiny"]
    assert CLIENT_SPAN == http["parentSpanId"]
    assert http["spanId"] == generation["parentSpanId"]
    for phase in ("queue", "prefill", "decode"):
        assert generation["spanId"] == spans[phase]["parentSpanId"]
    assert {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "pharos.request.id": chat.request_id,
    } == _attributes(http)
    assert {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "mlx",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.model": "tiny",
        # Jaeger's store on disk keeps a list as its JSON.
        "gen_ai.response.finish_reasons": json.dumps([chat.answer["choices"][0]["finish_reason"]]),
        "gen_ai.request.max_tokens": 8,
        "gen_ai.request.temperature": 1,
        "gen_ai.request.top_p": 1,
        "gen_ai.usage.input_tokens": chat.usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": chat.usage["completion_tokens"],
        "gen_ai.usage.cache_read.input_tokens": (
            chat.usage["prompt_tokens_details"]["cached_tokens"]
        ),
        "finish_reason": chat.answer["choices"][0]["finish_reason"],
    } == _attributes(generation)
    assert {"prompt_cache.lookup", "first_token"} == {
        event["name"] for event in generation["events"]
    }


def test_the_servers_metrics_are_scraped(running: Stack) -> None:
    """What clients were told of their tokens is in Prometheus, by scrape with the key."""
    before = running.shown("pharos_tokens_total", type="output")
    expected = before + sum(ask(running.served).usage["completion_tokens"] for _ in range(5))
    expression = 'sum(pharos_tokens_total{job="pharos",type="output"})'
    until(
        lambda: running.prometheus.value(expression), lambda now: now == expected, what=expression
    )


def test_every_instrument_with_a_source_is_in_a_live_scrape(running: Stack) -> None:
    """What Prometheus has of the server is in the catalog, its rules' zeros included."""
    ask(running.served)
    found = until(
        lambda: {
            labels["__name__"]
            for labels, _ in running.prometheus.query('{job="pharos",__name__!~"up|scrape_.*"}')
        },
        lambda names: "pharos_tokens_total" in names,
        what="a scrape",
    )
    names = {name for name in found if not name.startswith(("job:", "ALERTS", "target_info"))}
    known = {
        f"{each.prometheus_name}{suffix}"
        for each in BY_NAME.values()
        for suffix in ("", "_bucket", "_count", "_sum")
    }
    assert names <= known
    assert {"pharos_engine_restarts_total", "pharos_telemetry_dropped_total"} <= names


def test_exemplars_lead_to_traces(running: Stack) -> None:
    """Prometheus' exemplars of the time to first token name traces that Jaeger has."""
    begin = time.time()
    chats = {ask(running.served).trace for _ in range(3)}
    found = until(
        lambda: running.prometheus.exemplars(
            "gen_ai_server_time_to_first_token_seconds_bucket", begin=begin, end=time.time() + 60
        ),
        lambda exemplars: bool(chats & {each["labels"]["trace_id"] for each in exemplars}),
        what="an exemplar of a chat",
    )
    trace = next(iter(chats & {each["labels"]["trace_id"] for each in found}))
    assert "chat tiny" in _spans_by_name(running, trace)


def test_span_metrics_count_requests(running: Stack) -> None:
    """The collector makes rates and durations from spans, by route, and Prometheus has them."""
    ask(running.served)
    until(
        lambda: running.prometheus.query(
            'traces_span_metrics_calls_total{span_name="POST /v1/chat/completions",'
            'http_route="/v1/chat/completions",http_response_status_code="200"}'
        ),
        what="span metrics",
    )
    assert running.prometheus.query('traces_span_metrics_duration_seconds_bucket{le="5.0"}')


def test_log_records_arrive_with_their_trace(running: Stack) -> None:
    """The access line of a chat is in the collector's file of logs, with the id of its trace."""
    chat = ask(running.served)

    def records() -> list[dict[str, Any]]:
        text = running.collector.logs.read_text(encoding="utf-8")
        return [
            record
            for line in text.splitlines()
            for resource in json.loads(line)["resourceLogs"]
            for scope in resource["scopeLogs"]
            for record in scope["logRecords"]
            if record.get("traceId") == chat.trace
        ]

    (line,) = until(records, what="the log record of a chat")
    assert chat.request_id in json.dumps(line)


def _query_of_a_trace(trace: str) -> str:
    """Return what Grafana asks the log for on the way from a trace: its data source's query."""
    file = DEPLOY / "grafana" / "provisioning" / "datasources" / "pharos.yaml"
    sources = yaml.safe_load(file.read_text(encoding="utf-8"))["datasources"]
    (way,) = [each["jsonData"]["tracesToLogsV2"] for each in sources if each["uid"] == "jaeger"]
    # Grafana reads "$$" of the file as "$", then fills in its own variables.
    query: str = way["query"].replace("$$", "$").replace("${__trace.traceId}", trace)
    assert trace in query
    assert "$" not in query
    return query


def test_grafanas_way_from_a_trace_to_its_log(running: Stack) -> None:
    """The query of a trace finds the access line of its chat alone; no line has the prompt."""
    prompt = f"What does {secrets.token_hex(8)} mean?"
    chats = [ask(running.served, prompt) for _ in range(2)]
    for chat in chats:
        (line,) = until(
            partial(running.victorialogs.lines, _query_of_a_trace(chat.trace)),
            what=f"the log of trace {chat.trace}",
        )
        assert chat.trace == line["trace_id"]
        assert {
            "_msg": "request",
            "request_id": chat.request_id,
            "route": "/v1/chat/completions",
            "status": "200",
            "service.name": "pharos",
        }.items() <= line.items()
    assert [] == running.victorialogs.lines(_query_of_a_trace(secrets.token_hex(16)))
    everything = json.dumps(running.victorialogs.lines("*"))
    assert chats[0].trace in everything
    assert prompt not in everything


def test_what_rules_read_of_the_collector_exists(running: Stack) -> None:
    """The collector's own metrics that alerts read are scraped, under the names in the rules."""
    for name in ("otelcol_exporter_queue_size", "otelcol_exporter_queue_capacity"):
        found = until(partial(running.prometheus.query, name), what=name)
        assert {"otel-collector"} <= {labels["job"] for labels, _ in found}


def test_every_rule_is_evaluated(running: Stack) -> None:
    """Prometheus evaluates all rules on what is there without an error."""
    ask(running.served)

    def rules() -> list[dict[str, Any]]:
        groups = fetch_json(f"{running.prometheus.url}/api/v1/rules")["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    found = until(rules, lambda all_: all(rule["health"] == "ok" for rule in all_), what="rules")
    assert len(found) > 40
    ratio = 'job:pharos_request_errors:ratio_rate5m{job="pharos"}'
    until(lambda: running.prometheus.value(ratio), lambda value: value >= 0, what=ratio)
