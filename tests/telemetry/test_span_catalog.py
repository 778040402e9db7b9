"""The reference of traces and of the log has what is made, and nothing else."""

from __future__ import annotations

import inspect
import io
import json
import logging
import re
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import signals
from mlx_pharos.telemetry import attributes as a
from mlx_pharos.telemetry import request_span, spans
from mlx_pharos.telemetry.catalog import BY_NAME
from mlx_pharos.telemetry.collector import make_window
from mlx_pharos.telemetry.content import Content
from mlx_pharos.telemetry.correlation import CURRENT
from mlx_pharos.telemetry.log import LINE_FIELDS, configure_log
from mlx_pharos.telemetry.record import EngineReport, GenerationRecord, RequestRecord, Resumption
from mlx_pharos.telemetry.request_line import RequestLine, log_request
from mlx_pharos.telemetry.request_span import EachSpan
from mlx_pharos.telemetry.span_catalog import SPANS
from mlx_pharos.telemetry.spans import SpanWriter
from mlx_pharos.telemetry.telemetry import Telemetry, TelemetryOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import ReadableSpan

TYPES = {"string": str, "int": int, "double": float, "string[]": tuple}
BARE = GenerationRecord(operation="chat", model="tiny", finish_reason="stop")
FULL = GenerationRecord(
    operation="chat",
    model="tiny",
    request_model="tiny",
    max_tokens=5,
    temperature=1.0,
    top_p=0.5,
    finish_reason="error",
    error_code="engine_died",
    content=Content([("user", "?")], choices=1),
)
CUT = EngineReport(
    accepted_at=1.0,
    prefill_at=2.0,
    first_token_at=3.0,
    resumptions=(Resumption(reason="hang", lost_at=1.5, resumed_at=1.8),),
)
WHOLE = EngineReport(accepted_at=1.0, prefill_at=2.0, first_token_at=3.0, finished_at=4.0)
CUT_PHASES = (
    CUT,
    msgspec.structs.replace(CUT, first_token_at=0.0),
    msgspec.structs.replace(CUT, first_token_at=0.0, prefill_at=0.0),
)


@pytest.fixture(autouse=True)
def log() -> Iterator[io.StringIO]:
    """The log in memory, as JSON."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()
    configure_log(style="json", stream=stream)
    yield stream
    root.handlers[:], root.level = before


def _made() -> list[tuple[str, ReadableSpan]]:
    """Make spans with all that they can have, and spans with nothing of it."""
    exporter = InMemorySpanExporter()
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(EachSpan(SimpleSpanProcessor(exporter)))
    writer = SpanWriter(tracers.get_tracer("test"), epoch_offset_ns=0)
    whole = msgspec.structs.replace(BARE, engine=WHOLE)
    generations = [
        BARE,
        whole,
        *(msgspec.structs.replace(FULL, engine=each) for each in CUT_PHASES),
    ]
    for each in (None, *generations):
        record = RequestRecord(
            request_id="r",
            method="POST",
            route="/v1/models" if each else "",
            status=200,
            started_at=0.5,
            ended_at=9.0,
            error_code=each.error_code if each else "",
            generation=each,
        )
        begun = writer.begin({"wsgi.url_scheme": "http"}, "POST", 0.5)
        writer.finish(begun, record)
    keys = {"POST": "HTTP", "chat": "generation"}
    found = exporter.get_finished_spans()
    return [(keys.get(word := span.name.split()[0], word), span) for span in found]


@pytest.mark.parametrize("kind", SPANS, ids=lambda kind: kind.key)
def test_a_span_has_what_is_declared(kind: Any) -> None:
    """Attributes, their types and the events: all that are declared, and no others."""
    made = [span for key, span in _made() if key == kind.key]
    seen = [dict(span.attributes or {}) for span in made]
    types = {each.name: TYPES[each.type] for each in kind.attributes}
    assert types == {name: type(value) for each in seen for name, value in each.items()}
    always = {each.name for each in kind.attributes if not each.when}
    assert always == set.intersection(*map(set, seen))
    events = {each.name: {one.name for one in each.attributes} for each in kind.events}
    assert events == {one.name: set(one.attributes or {}) for span in made for one in span.events}
    assert {kind.kind} == {span.kind.name for span in made}


def test_no_span_has_a_name_of_its_own() -> None:
    """The phases are all; and no name stands in the code that makes spans without being declared."""
    assert {kind.key for kind in SPANS} == {key for key, _ in _made()}
    source = inspect.getsource(request_span) + inspect.getsource(spans)
    constants = (getattr(a, each) for each in re.findall(r"\ba\.([A-Z_]+)\b", source))
    names = {getattr(each, "name", each) for each in constants}
    names |= set(re.findall(r'"([a-z_]+(?:\.[a-z_]+)+)"', source))
    names |= set(re.findall(r'Event\(\s*"([^"]+)"', source))
    attributes, events = _declared_names()
    assert attributes | events == names - {"wsgi.url_scheme"}


def test_an_access_line_has_what_is_declared(log: io.StringIO) -> None:
    """Each field says what it means; those that may be left out say when; no others come."""
    fields = {each.name: each for each in signals.line_fields()}
    optional = {each.name for each in msgspec.structs.fields(RequestLine) if not each.required}
    assert optional == {each.name for each in fields.values() if each.left_out}
    bare: dict[str, Any] = {
        "request_id": "r",
        "method": "GET",
        "status": 200,
        "duration_seconds": 1.5,
    }
    full: dict[str, Any] = {
        each.name: _other_than(each.default) for each in msgspec.structs.fields(RequestLine)
    }
    log_request(RequestLine(**bare))
    log_request(RequestLine(**(full | bare)))
    short, long = map(json.loads, log.getvalue().splitlines())
    around = {"event", "level", "logger", "timestamp"}
    assert fields.keys() - optional | around == short.keys()
    assert [*fields] == [name for name in long if name not in around]
    assert around <= long.keys() & LINE_FIELDS.keys()


def _declared_names() -> tuple[set[str], set[str]]:
    """Return the names of all attributes, those of events among them, and of all events."""
    events = [event for kind in SPANS for event in kind.events]
    attributes = [each for kind in SPANS for each in kind.attributes]
    attributes += [each for event in events for each in event.attributes]
    return {each.name for each in attributes}, {event.name for event in events}


def _other_than(default: object) -> Any:
    """Return a value of a field's type that is not the default."""
    return {bool: True, int: 3, float: 0.5}.get(type(default), "x")


def test_other_lines_have_what_is_declared(log: io.StringIO) -> None:
    """Within a request and with an exception a line has all, and else what is never left out."""
    token = CURRENT.set(("1" * 32, "2" * 16))
    try:
        logging.getLogger("x").error("a", exc_info=ValueError("b"))
    finally:
        CURRENT.reset(token)
    logging.getLogger("x").error("a")
    full, bare = map(json.loads, log.getvalue().splitlines())
    assert LINE_FIELDS.keys() == full.keys()
    assert {name for name, (_, left_out) in LINE_FIELDS.items() if not left_out} == bare.keys()


def test_the_names_in_the_comparison_exist() -> None:
    """Each field of the line is compared, with attributes, events, spans and metrics that there are."""
    lines, traces, metrics = (" ".join(column) for column in zip(*signals.NAMES, strict=True))
    fields = {each.name for each in signals.line_fields()}
    assert fields - {"stream"} == set(re.findall(r"`([^`]+)`", lines))
    attributes, events = _declared_names()
    assert set(re.findall(r"`([^`]+)`", traces)) <= attributes | events | {x.key for x in SPANS}
    labels = {each.name for one in BY_NAME.values() for each in one.attributes}
    values = {*a.TOKEN_TYPE.values, *a.REQUEST_TOKEN_TYPE.values}
    assert set(re.findall(r"`([^`]+)`", metrics)) <= {*BY_NAME} | labels | values


def test_the_resource_has_what_is_declared() -> None:
    """Its attributes are those of the page."""
    with Telemetry(TelemetryOptions(model="tiny"), window=make_window()) as telemetry:
        assert signals.RESOURCE.keys() == telemetry.resource.attributes.keys()
