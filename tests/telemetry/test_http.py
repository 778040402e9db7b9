"""The middleware and the recorder: one request in, one record out, and what is made of it."""

from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    InMemoryMetricReader,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind, StatusCode

from mlx_pharos.resilience.errors import (
    DrainingError,
    EngineDiedError,
    PharosError,
    QueueFullError,
    RequestTooLargeError,
)
from mlx_pharos.telemetry.collector import MetricsCollector, make_window
from mlx_pharos.telemetry.correlation import CURRENT
from mlx_pharos.telemetry.folded import FoldedSet, FoldedStream
from mlx_pharos.telemetry.http import TelemetryMiddleware, exchange_of
from mlx_pharos.telemetry.instruments import Instruments
from mlx_pharos.telemetry.log import configure_log
from mlx_pharos.telemetry.record import (
    EngineReport,
    GenerationDraft,
    Resumption,
)
from mlx_pharos.telemetry.recorder import Recorder
from mlx_pharos.telemetry.request_span import EachSpan
from mlx_pharos.telemetry.spans import SpanWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from opentelemetry.sdk.trace import ReadableSpan

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def _started(*_: Any) -> Any:
    """Take the status, as a server does."""


class _Bench:
    """A middleware around an application of the test's, on a clock of the test's."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        window = make_window()
        meters = MeterProvider(metric_readers=[self.reader, window], shutdown_on_exit=False)
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(EachSpan(SimpleSpanProcessor(self.exporter)))
        self.folded = FoldedSet()
        instruments = Instruments(meters.get_meter("test"), folded=self.folded)
        self.collector = MetricsCollector(instruments, window)
        self.recorder = Recorder(instruments, self.collector, models={"tiny"})
        self.spans = SpanWriter(tracers.get_tracer("test"), epoch_offset_ns=0)
        self.lines = io.StringIO()

    def middleware(self, application: Any) -> TelemetryMiddleware:
        return TelemetryMiddleware(application, self.recorder, self.spans, clock=lambda: self.now)

    def call(
        self,
        draft: GenerationDraft | None = None,
        *,
        status: str = "200 OK",
        body: Callable[[], Iterable[bytes]] = lambda: [b"x"],
        pull: int | None = None,
        route: str = "/v1/chat/completions",
        method: str = "POST",
        **environ: Any,
    ) -> None:
        """Answer one request, of which the client takes ``pull`` pieces."""

        def application(environ: Any, start_response: Any) -> Iterable[bytes]:
            exchange = exchange_of(environ)
            exchange.route, exchange.request_id = route, "req_1"
            exchange.generation = draft
            if draft is not None and draft.error_code:
                exchange.error_code, exchange.failed = draft.error_code, draft.failed
            start_response(status, [])
            return body()

        answer: Any = self.middleware(application)({"REQUEST_METHOD": method} | environ, _started)
        for taken, _ in enumerate(answer, 1):
            if taken == pull:
                break
        answer.close()

    def points(self, name: str) -> list[Any]:
        found = self.reader.get_metrics_data() or MetricsData(
            [
                ResourceMetrics(
                    Resource.get_empty(), [ScopeMetrics(InstrumentationScope("x"), [], "")], ""
                )
            ]
        )
        stream = FoldedStream(self.folded, AggregationTemporality.CUMULATIVE)
        data = stream.append_to(found, started_ns=0, now_ns=1)
        return [
            point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def span(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self.exporter.get_finished_spans() if span.name == name]
        return found


@pytest.fixture
def bench() -> Iterator[_Bench]:
    """A fresh one, with the log in memory."""
    made = _Bench()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    configure_log(style="json", stream=made.lines)
    yield made
    root.handlers, root.level = before


def _draft(report: EngineReport | None = None, **fields: Any) -> GenerationDraft:
    given: dict[str, Any] = {"request_model": "tiny", "choices": 1, "stream": True} | fields
    return GenerationDraft(
        operation="chat", model="tiny", report=lambda: report or EngineReport(), **given
    )


REPORT = EngineReport(
    endings=("stop",),
    prompt_tokens=30,
    cached_tokens=20,
    completion_tokens=11,
    accepted_at=1000.1,
    prefill_at=1000.3,
    first_token_at=1000.6,
    finished_at=1001.6,
    decode_seconds=1.0,
    decode_intervals=10,
)


def test_a_stream_ends_with_its_last_byte(bench: _Bench) -> None:
    """A stream of two seconds is a request of two seconds, in the span, the metric and the log."""

    def stream() -> Iterator[bytes]:
        for _ in range(4):
            bench.now += 0.5
            yield b"x"

    bench.call(_draft(REPORT), body=stream)
    (duration,) = bench.points("http.server.request.duration")
    assert (1, pytest.approx(2.0)) == (duration.count, duration.sum)
    span = bench.span("POST /v1/chat/completions")
    assert span.start_time is not None
    assert span.end_time is not None
    assert 2_000_000_000 == span.end_time - span.start_time
    line = json.loads(bench.lines.getvalue())
    assert 2.0 == line["duration_seconds"]
    assert (30, 20, 11) == (
        line["prompt_tokens"],
        line["cached_tokens"],
        line["completion_tokens"],
    )
    assert "stop" == line["finish_reason"]


def test_the_callers_trace_goes_on(bench: _Bench) -> None:
    """The spans continue the caller's trace, hang together, and lie where the engine said."""
    bench.call(_draft(REPORT), HTTP_TRACEPARENT=TRACEPARENT)
    server = bench.span("POST /v1/chat/completions")
    chat = bench.span("chat tiny")
    assert server.parent is not None
    assert 0xB7AD6B7169203331 == server.parent.span_id
    assert SpanKind.SERVER is server.kind
    for name, begin, end in (
        ("queue", 1000.1, 1000.3),
        ("prefill", 1000.3, 1000.6),
        ("decode", 1000.6, 1001.6),
    ):
        span = bench.span(name)
        assert span.parent is not None
        assert chat.context.span_id == span.parent.span_id
        assert (span.start_time or 0) / 1e9 == pytest.approx(begin)
        assert (span.end_time or 0) / 1e9 == pytest.approx(end)
    assert chat.parent is not None
    assert server.context.span_id == chat.parent.span_id
    assert {0x0AF7651916CD43DD8448EB211C80319C} == {
        span.context.trace_id for span in bench.exporter.get_finished_spans()
    }
    assert ["prompt_cache.lookup", "first_token"] == [event.name for event in chat.events]


def test_a_client_that_leaves_ends_the_request(bench: _Bench) -> None:
    """A stream that is closed half-way is cancelled: counted once, traced, no error of ours."""
    report = EngineReport(endings=("cancelled",), prompt_tokens=5, completion_tokens=2)
    bench.call(_draft(report), body=lambda: iter([b"1", b"2", b"3"]), pull=2)
    (finished,) = bench.points("pharos.requests.finished")
    assert {"model": "tiny", "finish_reason": "cancelled", "error.type": "client_gone"} == dict(
        finished.attributes
    )
    span = bench.span("POST /v1/chat/completions")
    assert span.attributes is not None
    assert "client_gone" == span.attributes["error.type"]
    assert StatusCode.UNSET is span.status.status_code
    line = json.loads(bench.lines.getvalue())
    assert (True, "cancelled", 200) == (line["client_left"], line["finish_reason"], line["status"])
    assert 0 == sum(point.count for point in bench.points("gen_ai.server.time_to_first_token"))


@pytest.mark.parametrize(
    ("times", "phases", "ends"),
    [
        ({"finished_at": 0.0}, (1, 1, 0), {"queue": 0.3, "prefill": 0.6, "decode": 2.0}),
        ({"first_token_at": 0.0, "finished_at": 0.0}, (1, 0, 0), {"queue": 0.3, "prefill": 2.0}),
        (
            {"prefill_at": 0.0, "first_token_at": 0.0, "finished_at": 0.0},
            (0, 0, 0),
            {"queue": 2.0},
        ),
        # The engine said when it stopped: before the request's end, or after it.
        ({"endings": ("cancelled",)}, (1, 1, 0), {"queue": 0.3, "prefill": 0.6, "decode": 1.6}),
        (
            {"endings": ("cancelled",), "finished_at": 1002.5},
            (1, 1, 0),
            {"queue": 0.3, "prefill": 0.6, "decode": 2.0},
        ),
    ],
)
def test_a_phase_that_was_cut_off_is_a_span_and_no_sample(
    bench: _Bench, times: dict[str, Any], phases: tuple[int, ...], ends: dict[str, float]
) -> None:
    """The last one ends with the request and says why; those before it are as always."""

    def stream() -> Iterator[bytes]:
        bench.now += 2.0
        yield b"x"

    draft = _draft(msgspec.structs.replace(REPORT, **({"endings": ()} | times)))
    draft.fail(EngineDiedError("died"))
    bench.call(draft, body=stream)
    counts = [
        sum(point.count for point in bench.points(f"pharos.request.{name}.duration"))
        for name in ("queue", "prefill", "decode")
    ]
    assert [*phases] == counts
    spans = {name: bench.span(name) for name in ends}
    assert 2 + len(ends) == len(bench.exporter.get_finished_spans())
    for name, end in ends.items():
        assert ((spans[name].end_time or 0) / 1e9 - 1000) == pytest.approx(end)
    *before, last = spans.values()
    assert {"error.type": "engine_died"} == dict(last.attributes or {})
    assert StatusCode.ERROR is last.status.status_code
    assert not any(each.attributes for each in before)


def test_a_refusal_is_traced_and_no_latency(bench: _Bench) -> None:
    """A refused request is counted, traced and logged, and the latency window knows nothing of it."""
    draft = _draft()
    draft.fail(QueueFullError("full"))
    bench.call(draft, status="503 Service Unavailable")
    (refusal,) = [each for each in bench.points("pharos.admission.refusals") if each.value]
    assert {"reason": "queue_full"} == dict(refusal.attributes)
    figures = bench.collector.figures()
    assert (1, 0) == (figures.total_requests, figures.latency_samples)
    chat = bench.span("chat tiny")
    assert chat.attributes is not None
    assert "queue_full" == chat.attributes["error.type"]
    line = json.loads(bench.lines.getvalue())
    # What there was none of is left out, also where it was computed.
    assert line.keys().isdisjoint({"first_token_seconds", "queue_seconds", "completion_tokens"})
    assert ("queue_full", 503) == (line["error_code"], line["status"])


@pytest.mark.parametrize("began", [False, True])
@pytest.mark.parametrize(
    "error",
    [DrainingError("stopping"), RequestTooLargeError(prompt_tokens=9, largest_tokens=8)],
    ids=lambda error: error.code,
)
def test_a_refusal_counts_unless_the_request_had_begun(
    bench: _Bench, error: PharosError, *, began: bool
) -> None:
    """What had begun when its error was told failed; the refusals are the requests that ended so."""
    draft = _draft(EngineReport(accepted_at=1000.1, prefill_at=1000.2), has_begun=lambda: began)
    draft.fail(error)
    bench.call(draft, status=f"{error.status} Refused")
    refused = [each.value for each in bench.points("pharos.admission.refusals") if each.value]
    assert ([] if began else [1]) == refused
    finish = json.loads(bench.lines.getvalue())["finish_reason"]
    assert ("error" if began else "refused") == finish


def test_a_resumed_request_tells_of_the_engine_it_lost(bench: _Bench) -> None:
    """The engine's end and the resumption are events of the generation's span."""
    resumption = Resumption(reason="SIGKILL", lost_at=1000.8, resumed_at=1001.2)
    bench.call(_draft(msgspec.structs.replace(REPORT, resumptions=(resumption,))))
    events = {event.name: event for event in bench.span("chat tiny").events}
    assert {"reason": "SIGKILL"} == dict(events["engine.lost"].attributes or {})
    times = [events[name].timestamp / 1e9 for name in ("engine.lost", "resumed")]
    assert times == pytest.approx([1000.8, 1001.2])


def test_a_failure_after_the_status_is_an_error(bench: _Bench) -> None:
    """A stream that fails after its 200 is an error in spans, metrics and the log."""
    draft = _draft(EngineReport(prompt_tokens=5, completion_tokens=3))
    draft.fail(EngineDiedError("died"))
    bench.call(draft)
    assert StatusCode.ERROR is bench.span("chat tiny").status.status_code
    assert StatusCode.ERROR is bench.span("POST /v1/chat/completions").status.status_code
    (duration,) = bench.points("gen_ai.server.request.duration")
    assert "engine_died" == duration.attributes["error.type"]
    line = json.loads(bench.lines.getvalue())
    assert ("error", True, 200) == (line["level"], line["failed"], line["status"])


def test_a_refusal_is_a_warning(bench: _Bench) -> None:
    """Its status is one of a server's errors, in spans too, but nothing has failed."""

    def application(environ: Any, start_response: Any) -> Iterable[bytes]:
        exchange_of(environ).fail(QueueFullError("full", retry_after=1.0))
        start_response("503 Service Unavailable", [])
        return [b"x"]

    answer: Any = bench.middleware(application)({"REQUEST_METHOD": "POST"}, _started)
    assert [b"x"] == [*answer]
    answer.close()
    line = json.loads(bench.lines.getvalue())
    assert ("warning", False, 503) == (line["level"], line.get("failed", False), line["status"])
    assert StatusCode.ERROR is bench.span("POST").status.status_code


def test_series_stay_closed(bench: _Bench) -> None:
    """Invented methods and models are one series each, and a path that no route has is none."""
    for number in range(300):
        bench.call(
            _draft(REPORT, request_model=f"model-{number}"),
            method=f"M{number}",
            route="" if number % 2 else "/v1/chat/completions",
            HTTP_X_REQUEST_ID=str(number),
        )
    assert 2 == len(bench.points("http.server.request.duration"))
    (generation,) = bench.points("gen_ai.server.request.duration")
    assert "_OTHER" == generation.attributes["gen_ai.request.model"]
    assert 300 == generation.count


def test_lines_within_a_request_name_its_trace(bench: _Bench) -> None:
    """Whatever the application logs while it answers carries the trace, and nothing after it does."""

    def stream() -> Iterator[bytes]:
        logging.getLogger("test").warning("inside")
        yield b"x"

    bench.call(body=stream, HTTP_TRACEPARENT=TRACEPARENT)
    logging.getLogger("test").warning("outside")
    inside, access, outside = map(json.loads, bench.lines.getvalue().splitlines())
    span = bench.span("POST /v1/chat/completions")
    assert "0af7651916cd43dd8448eb211c80319c" == inside["trace_id"] == access["trace_id"]
    assert format(span.context.span_id, "016x") == inside["span_id"] == access["span_id"]
    assert "trace_id" not in outside
    assert ("", "") == CURRENT.get()


def test_active_requests_go_back_to_zero(bench: _Bench) -> None:
    """A request is active until it is closed, also when the application raises."""

    def failing(*_: Any) -> Any:
        assert 1 == sum(point.value for point in bench.points("http.server.active_requests"))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        bench.middleware(failing)({"REQUEST_METHOD": "GET"}, _started)
    assert 0 == sum(point.value for point in bench.points("http.server.active_requests"))
    (duration,) = bench.points("http.server.request.duration")
    assert 500 == duration.attributes["http.response.status_code"]
