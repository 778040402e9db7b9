"""The reference of traces and of the log, held against what real traffic leaves behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import signals
from mlx_pharos.telemetry.content import CAPTURE_VARIABLE
from mlx_pharos.telemetry.log import LINE_FIELDS
from mlx_pharos.telemetry.span_catalog import SPANS
from support import ordeal
from support.books import SERVER
from support.client import wait_until
from support.collector import attributes_of
from support.stage import set_stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.books import Books

KINDS = {
    "plain": 4,
    "completion": 3,
    "stream": 4,
    "leave": 3,
    "bad": 12,
    "refused": 8,
    "too-long": 1,
    "late": 2,
    "report": 4,
}
_TYPES = {
    "string": "string_value",
    "int": "int_value",
    "double": "double_value",
    "string[]": "array_value",
}


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory, serving: Callable[..., Any]) -> Iterator[Books]:
    """Of a server that answered, refused, lost engines, and had leave to tell of content."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CAPTURE_VARIABLE, "true")
        with set_stage(tmp_path_factory.mktemp("names"), serving, seed=7) as stage:
            stage.traffic.run(KINDS, clients=6)
            wait_until(lambda: stage.server.engine.in_flight == 0)
            ordeal.kill_engines(stage.server, stage.traffic)
            stage.server.listener.stop()
            yield stage.books()


@pytest.mark.parametrize("kind", SPANS, ids=lambda kind: kind.key)
def test_real_spans_have_what_the_reference_says(kind: Any, books: Books) -> None:
    """Nothing else is met, and what is always there always is. All of it is met, but for phases: whether
    a queue or a prefill was cut off is up to chance.
    """
    found = [span for span in books.spans if _key(span) == kind.key]
    given = {each.key: each.value.WhichOneof("value") for span in found for each in span.attributes}
    declared = {each.name: _TYPES[each.type] for each in kind.attributes}
    assert given.items() <= declared.items()
    assert declared == given or kind.key in {"queue", "prefill", "decode"}
    for span in found:
        assert {each.name for each in kind.attributes if not each.when} <= attributes_of(
            span
        ).keys()
    events = {event.name: {*attributes_of(event)} for span in found for event in span.events}
    assert {event.name: {each.name for each in event.attributes} for event in kind.events} == events


def test_real_lines_have_what_the_reference_says(books: Books) -> None:
    """All fields of the access line are met, and no others; what is never left out never is."""
    around = {"event", "level", "logger", "timestamp"}
    fields = {each.name: each for each in signals.line_fields()}
    met = {name for line in books.lines for name in line}
    assert around | fields.keys() == met
    assert around <= LINE_FIELDS.keys()
    never = {name for name, each in fields.items() if not each.left_out}
    assert all(never <= line.keys() for line in books.lines)


def _key(span: Any) -> str:
    if span.kind == SERVER:
        return "HTTP"
    word: str = span.name.partition(" ")[0]
    return "generation" if word in {"chat", "text_completion"} else word
