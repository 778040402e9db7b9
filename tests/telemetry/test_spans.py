"""How a request's span begins, and what of its headers is read for it."""

from __future__ import annotations

import time

import pytest
from opentelemetry import baggage, propagate
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from mlx_pharos.telemetry.losses import ThrottledLog
from mlx_pharos.telemetry.record import RequestRecord
from mlx_pharos.telemetry.request_span import EachSpan
from mlx_pharos.telemetry.spans import SpanWriter

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
STATES = ("no=t,a b=c", "=", "a=b," * 40, "ümlaut=1")


def test_spans_follow_the_time_of_day_between_requests_and_never_within_one() -> None:
    """After a sleep of the machine, or a step of its clock, later requests have the new time."""
    wall = time.time_ns()
    exporter = InMemorySpanExporter()
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(EachSpan(SimpleSpanProcessor(exporter)))
    writer = SpanWriter(tracers.get_tracer("test"), wall_ns=lambda: wall)

    def record(begin: float) -> RequestRecord:
        return RequestRecord(
            request_id="r", method="GET", route="", status=200, started_at=begin, ended_at=begin + 5
        )

    begin = time.monotonic()
    span = writer.begin({}, "GET", begin)
    wall += 3600 * 10**9
    writer.finish(span, record(begin))
    begin = time.monotonic()
    span = writer.begin({}, "GET", begin)
    writer.finish(span, record(begin))
    before, after = exporter.get_finished_spans()
    for each in (before, after):
        assert each.start_time
        assert each.end_time
        assert abs(each.end_time - each.start_time - 5 * 10**9) < 1000
    assert before.start_time
    assert after.start_time
    assert abs(after.start_time - before.start_time - 3600 * 10**9) < 60 * 10**9


@pytest.mark.parametrize("sampler", ["always_on", "parentbased_always_off", "traceidratio"])
@pytest.mark.parametrize("flags", ["00", "01", "03", None])
def test_a_span_begins_as_the_sdks_would(
    sampler: str, flags: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trace, flags, state and parent are those of the SDK's own start of a span."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "1")
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test", "1")
    headers = (
        {} if flags is None else {"traceparent": f"{TRACEPARENT[:-2]}{flags}", "tracestate": "a=b"}
    )
    environ = {f"HTTP_{name.upper()}": value for name, value in headers.items()}
    ours = SpanWriter(tracer).begin(environ, "GET", time.monotonic())
    theirs = tracer.start_span("GET", context=propagate.extract(headers), kind=SpanKind.SERVER)
    begun = theirs.get_span_context()
    assert (begun.trace_flags, begun.trace_state) == (
        ours.context.trace_flags,
        ours.context.trace_state,
    )
    assert theirs.is_recording() == ours.is_recording
    assert not ours.context.is_remote
    assert getattr(theirs, "parent", ours.parent) == ours.parent
    if flags is not None:
        assert begun.trace_id == ours.context.trace_id
        assert ours.parent
        assert ours.parent.is_remote


def test_baggage_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing uses it, and 8 KB of it can take the time of a hundred requests."""
    monkeypatch.setattr(baggage, "set_baggage", lambda *_: pytest.fail("it was read"))
    writer = SpanWriter(TracerProvider(shutdown_on_exit=False).get_tracer("test"))
    environ = {"HTTP_TRACEPARENT": TRACEPARENT, "HTTP_BAGGAGE": "user=me"}
    assert writer.begin(environ, "GET", time.monotonic()).parent
    assert not writer.begin({"HTTP_BAGGAGE": "user=me"}, "GET", time.monotonic()).parent


def test_a_callers_headers_never_come_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """What OpenTelemetry has to say of wrong ones quotes them."""
    writer = SpanWriter(TracerProvider(shutdown_on_exit=False).get_tracer("test"))
    log = ThrottledLog()
    log.open()
    try:
        for state in STATES:
            environ = {
                "HTTP_TRACEPARENT": TRACEPARENT,
                "HTTP_TRACESTATE": state,
                "HTTP_BAGGAGE": "user=Ann Smith,é",
            }
            assert writer.begin(environ, "GET", time.monotonic()).parent
    finally:
        log.close()
    assert not [each for each in caplog.records if each.name.startswith("mlx_pharos")]
