"""``/metrics``: what a scrape says, in both formats, from many threads, under hostile values."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from mlx_pharos.telemetry import attributes as a
from mlx_pharos.telemetry.catalog import BY_NAME, Kind
from mlx_pharos.telemetry.collector import make_window
from mlx_pharos.telemetry.exposition import OPENMETRICS, PLAIN, choose_format
from mlx_pharos.telemetry.folded import FoldedHistogram
from mlx_pharos.telemetry.reading import Reading
from mlx_pharos.telemetry.telemetry import Telemetry, TelemetryOptions
from mlx_pharos.telemetry.totals import FoldedFamily, Total
from mlx_pharos.telemetry.vllm import ALIASES
from support.clock import SimulatedClock
from support.promtool import VLLM_COLONS, promtool_findings
from support.simulated import SimulatedRequests

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlx_pharos.telemetry.instruments import Instruments


OPEN = "application/openmetrics-text; version=1.0.0"
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
"""What Prometheus 3 sends."""


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    """Telemetry with every instrument in use and every attribute set."""
    spans = SimpleSpanProcessor(InMemorySpanExporter())
    with Telemetry(TelemetryOptions(model="tiny"), span_processors=[spans]) as made:
        _use_all(made.instruments)
        yield made


def _values(name: str) -> dict[str, str]:
    return {
        each.name: each.values[0] if each.values else "tiny" for each in BY_NAME[name].attributes
    }


def _use_all(instruments: Instruments) -> None:
    for name, spec in BY_NAME.items():
        values = _values(name)
        if spec.kind in {Kind.GAUGE, Kind.UP_DOWN, Kind.OBSERVABLE_COUNTER} and (
            name != "pharos.telemetry.dropped"
        ):
            value = 6.0 if name == "pharos.ledger.limit" else 1.5
            reading = Reading(value, values)
            instruments.observe(name, lambda reading=reading: [reading])
    for made in vars(instruments).values():
        if isinstance(made, FoldedFamily):
            made.at(_values(made.name)).fold(0.3)
        elif isinstance(made, Total):
            made.add(2, _values(made.name))
        elif isinstance(made, FoldedHistogram):
            made.fold(0.3, 2)


def _samples(text: str, *, openmetrics: bool = False) -> dict[str, Any]:
    parse = parse_openmetrics if openmetrics else parse_plain
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample
        for family in parse(text)
        for sample in family.samples
    }


@pytest.mark.parametrize("accept", ["", OPEN], ids=["plain", "openmetrics"])
def test_every_instrument_is_in_the_scrape(telemetry: Telemetry, accept: str) -> None:
    """Each instrument of the catalog has its documented name, and strict parsers take it all."""
    text, content_type = telemetry.prometheus.scrape(accept)
    assert (OPENMETRICS if accept else PLAIN).content_type == content_type
    names = {key.partition("[")[0] for key in _samples(text, openmetrics=bool(accept))}
    for spec in BY_NAME.values():
        suffixes = ("_bucket", "_sum", "_count") if spec.is_histogram else ("",)
        assert {spec.prometheus_name + suffix for suffix in suffixes} <= names


def test_labels_are_those_of_the_catalog(telemetry: Telemetry) -> None:
    """A series has the attributes of its instrument as labels, and no scope labels."""
    text, _ = telemetry.prometheus.scrape()
    by_name = {spec.prometheus_family: spec for spec in BY_NAME.values()}
    for family in parse_plain(text):
        if family.name == "target_info":
            continue
        known = {each.name.replace(".", "_") for each in by_name[family.name].attributes} | {"le"}
        for sample in family.samples:
            assert set(sample.labels) <= known, sample


def test_a_histogram_counts_and_sums(telemetry: Telemetry) -> None:
    """Buckets are cumulative, a value on a bound is in that bucket, folded ones as well."""
    histogram = telemetry.instruments.queue_duration
    for value in (0.25, 0.26, 5000.0):
        histogram.at({"model": "b"}).fold(value)
    samples = _samples(telemetry.prometheus.scrape()[0])
    base = "pharos_request_queue_duration_seconds"
    counts = {
        bound: samples[f"{base}_bucket[('le', '{bound}'), ('model', 'b')]"].value
        for bound in ("0.1", "0.25", "0.5", "3600.0", "+Inf")
    }
    assert {"0.1": 0, "0.25": 1, "0.5": 2, "3600.0": 2, "+Inf": 3} == counts
    assert 3 == samples[f"{base}_count[('model', 'b')]"].value
    assert 5000.51 == pytest.approx(samples[f"{base}_sum[('model', 'b')]"].value)
    inter_token = "pharos_inter_token_duration_seconds"
    assert 0 == samples[f"{inter_token}_bucket[('le', '0.2'), ('model', 'tiny')]"].value
    assert 2 == samples[f"{inter_token}_bucket[('le', '0.3'), ('model', 'tiny')]"].value


def test_exemplars_name_the_trace(telemetry: Telemetry) -> None:
    """A latency bucket names a trace that fell into it, also in the scrapes after the first."""
    span = telemetry.tracer.start_span("request")
    values = _values("gen_ai.server.request.duration")
    series = telemetry.instruments.gen_ai_request_duration.at(values)
    series.fold(0.7, mark=span.get_span_context())
    expected = f"{span.get_span_context().trace_id:032x}"
    for _ in range(2):
        text, _ = telemetry.prometheus.scrape(OPEN)
        found = {
            sample.labels["le"]: sample.exemplar
            for sample in _samples(text, openmetrics=True).values()
            if sample.name == "gen_ai_server_request_duration_seconds_bucket" and sample.exemplar
        }
        assert ["1.0"] == list(found)
        assert (expected, 0.7) == (found["1.0"].labels["trace_id"], found["1.0"].value)
        assert abs(float(found["1.0"].timestamp) - time.time()) < 60
    assert " # {" not in telemetry.prometheus.scrape()[0]


def test_every_latency_of_a_request_has_its_trace_as_example() -> None:
    """Of a request that succeeded, each histogram of its own times leads to its trace."""
    spans = SimpleSpanProcessor(InMemorySpanExporter())
    clock = SimulatedClock()
    window = make_window(clock=clock)
    options = TelemetryOptions(model="tiny")
    with Telemetry(options, window=window, span_processors=[spans]) as telemetry:
        SimulatedRequests(telemetry, clock).run(200)
        text, _ = telemetry.prometheus.scrape(OPEN)
    found = {
        sample.name.removesuffix("_seconds_bucket")
        for sample in _samples(text, openmetrics=True).values()
        if sample.exemplar and len(sample.exemplar.labels["trace_id"]) == 32
    }
    assert found == {
        "http_server_request_duration",
        "gen_ai_server_request_duration",
        "gen_ai_server_time_to_first_token",
        "gen_ai_server_time_per_output_token",
        "pharos_request_queue_duration",
        "pharos_request_prefill_duration",
        "pharos_request_decode_duration",
    }


def test_an_unsampled_trace_is_no_exemplar(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace that was not kept is not pointed at."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    spans = SimpleSpanProcessor(InMemorySpanExporter())
    with Telemetry(TelemetryOptions(model="tiny"), span_processors=[spans]) as telemetry:
        mark = telemetry.tracer.start_span("request").get_span_context()
        telemetry.instruments.queue_duration.at({"model": "tiny"}).fold(0.7, mark=mark)
        assert "trace_id" not in telemetry.prometheus.scrape(OPEN)[0]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", PLAIN),
        ("*/*", PLAIN),
        ("text/html,application/xhtml+xml", PLAIN),
        ("text/plain", PLAIN),
        (OPEN, OPENMETRICS),
        (PROMETHEUS, OPENMETRICS),
        ("text/plain;version=0.0.4;q=0.9,application/openmetrics-text;q=0.5", PLAIN),
        ("application/openmetrics-text;q=0", PLAIN),
        ("application/openmetrics-text;q=x", PLAIN),
        (";;;q=,=,\x00", PLAIN),
    ],
)
def test_the_format_follows_accept(accept: str, expected: object) -> None:
    """The header decides, by weight; plain text is what everybody can read."""
    assert expected == choose_format(accept)


@pytest.mark.parametrize("vllm", [False, True], ids=["own", "vllm"])
def test_promtool_finds_nothing(vllm: bool) -> None:
    """`promtool check metrics` has nothing to say of any instrument; of vLLM's names, that they
    have colons.
    """
    with Telemetry(TelemetryOptions(model="tiny", vllm_names=vllm)) as telemetry:
        _use_all(telemetry.instruments)
        findings = promtool_findings(telemetry.prometheus.scrape()[0])
    assert [] == [each for each in findings if not VLLM_COLONS.fullmatch(each)]
    assert vllm == bool(findings)


def test_concurrent_scrapes_are_whole(telemetry: Telemetry) -> None:
    """20 threads that scrape while 4 record each get one whole exposition, and totals never fall."""
    stop = threading.Event()

    def record() -> None:
        while not stop.is_set():
            telemetry.instruments.queue_duration.at({"model": "tiny"}).fold(0.2)
            telemetry.instruments.inter_token.fold(0.02)

    def scrape(_number: int) -> list[float]:
        seen = []
        for _ in range(10):
            text, _ = telemetry.prometheus.scrape(OPEN)
            assert text.count("# TYPE pharos_request_queue_duration_seconds histogram") == 1
            assert text.endswith("# EOF\n")
            line = next(
                each
                for each in text.splitlines()
                if each.startswith("pharos_request_queue_duration_seconds_count")
            )
            seen.append(float(line.rpartition(" ")[2]))
        return seen

    recorders = [threading.Thread(target=record) for _ in range(4)]
    for each in recorders:
        each.start()
    try:
        with ThreadPoolExecutor(20) as pool:
            for seen in pool.map(scrape, range(20)):
                assert sorted(seen) == seen
    finally:
        stop.set()
        for each in recorders:
            each.join()


def test_a_source_that_fails_is_left_out(
    telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    """The other figures are still there, and the log says once what is missing."""
    with Telemetry(TelemetryOptions(model="tiny")) as other:
        other.instruments.observe("pharos.engine.up", lambda: 1 // 0)
        other.instruments.observe("pharos.http.queue.depth", lambda: 7)
        for _ in range(3):
            text, _ = other.prometheus.scrape()
            assert "pharos_http_queue_depth 7.0" in text
            assert "pharos_engine_up" not in text
    assert 1 == caplog.text.count("the figures of pharos.engine.up cannot be read")
    assert "pharos_engine_up" in telemetry.prometheus.scrape()[0]


def test_a_scrape_brings_what_was_counted_since_the_last_one(telemetry: Telemetry) -> None:
    """Lines that were kept are written anew once something was counted, with its example."""
    histogram = telemetry.instruments.queue_duration.at({"model": "tiny"})
    before = [telemetry.prometheus.scrape(OPEN)[0] for _ in range(2)]
    assert before[0] == before[1]
    histogram.fold(0.3, mark=telemetry.tracer.start_span("request").get_span_context())
    text = telemetry.prometheus.scrape(OPEN)[0]
    changed = set(text.splitlines()) - set(before[0].splitlines())
    name = "pharos_request_queue_duration_seconds"
    assert {line.partition("{")[0] for line in changed} == {
        f"{name}{suffix}" for suffix in ("_bucket", "_count", "_sum")
    }
    assert 1 == sum(" # {" in line for line in changed)
    assert f'{name}_count{{model="tiny"}} 2' in changed


def test_10000_invented_values_make_no_series(telemetry: Telemetry) -> None:
    """Methods and models that clients invent end in one series, as the closed sets have it."""
    draw = random.Random(3)
    for number in range(10_000):
        text = "".join(draw.choices('aZ0"\\\n{}é\x00', k=12)) + str(number)
        method = a.HTTP_METHOD.close(text)
        telemetry.instruments.http_request_duration.at({a.HTTP_METHOD.name: method}).fold(0.1)
        model = a.close_model(text, ("tiny",))
        telemetry.instruments.tokens.add(1, {a.MODEL.name: model, a.TOKEN_TYPE.name: "output"})
    text, _ = telemetry.prometheus.scrape()
    assert text.count("http_server_request_duration_seconds_count{") == 2
    assert text.count("pharos_tokens_total{") == 2
    assert f'pharos_tokens_total{{model="{a.OTHER}",type="output"}} 10000.0' in text


def test_a_mistake_is_bounded_too(telemetry: Telemetry) -> None:
    """Should an open value ever reach an instrument, its series stop at the limit."""
    for number in range(10_000):
        telemetry.instruments.tokens.add(1, {"model": f'"\\\n{number}', "type": "output"})
    text, _ = telemetry.prometheus.scrape()
    samples = [each for each in _samples(text) if each.startswith("pharos_tokens_total")]
    assert len(samples) <= 1001
    assert 'otel_metric_overflow="true"' in text


def test_hostile_text_is_escaped(telemetry: Telemetry) -> None:
    """Quotes, backslashes and line breaks in a value come back as they were, in both formats."""
    hostile = 'a"b\\c\nd} 1\n# HELP x'
    telemetry.instruments.tokens.add(4, {"model": hostile, "type": "output"})
    for accept in ("", OPEN):
        text, _ = telemetry.prometheus.scrape(accept)
        found = [
            sample.value
            for sample in _samples(text, openmetrics=bool(accept)).values()
            if sample.labels.get("model") == hostile
        ]
        assert [4] == found


def test_vllm_names_are_optional() -> None:
    """The names of vLLM carry the same figures, and are there only when asked for."""
    options = TelemetryOptions(model="tiny", vllm_names=True)
    with Telemetry(options) as telemetry:
        _use_all(telemetry.instruments)
        tokens = telemetry.instruments.tokens
        tokens.add(10, {"model": "tiny", "type": "input_computed"})
        tokens.add(30, {"model": "tiny", "type": "input_cached"})
        tokens.add(7, {"model": "tiny", "type": "output"})
        telemetry.instruments.request_tokens.at({"model": "tiny", "type": "output"}).fold(7)
        telemetry.instruments.gen_ai_request_duration.at({"gen_ai.request.model": "tiny"}).fold(0.2)
        for accept in ("", OPEN):
            text, _ = telemetry.prometheus.scrape(accept)
            samples = _samples(text, openmetrics=bool(accept))
            values = {
                name: samples[f"vllm:{name}[('model_name', 'tiny')]"].value
                for name in (
                    "num_requests_running",
                    "num_requests_waiting",
                    "kv_cache_usage_perc",
                    "prompt_tokens_total",
                    "prefix_cache_hits_total",
                    "generation_tokens_total",
                    "time_to_first_token_seconds_count",
                )
            }
            assert {
                "num_requests_running": 1.5,
                "num_requests_waiting": 1.5,
                "kv_cache_usage_perc": 0.25,
                "prompt_tokens_total": 42,
                "prefix_cache_hits_total": 30,
                "generation_tokens_total": 7,
                "time_to_first_token_seconds_count": 1,
            } == values
            found = {key.partition("[")[0].partition("_bucket")[0] for key in samples}
            for alias in ALIASES:
                assert any(name.startswith(alias.name) for name in found), alias
    with Telemetry(TelemetryOptions(model="tiny")) as telemetry:
        _use_all(telemetry.instruments)
        assert "vllm:" not in telemetry.prometheus.scrape()[0]
