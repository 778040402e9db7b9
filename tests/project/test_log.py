"""The server's log."""

from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING

import pytest

from mlx_pharos.telemetry.log import RequestLine, configure_log, log_request

if TYPE_CHECKING:
    from collections.abc import Iterator

LINE = RequestLine(
    request_id="req-1",
    method="POST",
    route="/v1/chat/completions",
    status=200,
    duration_seconds=1.23456,
    model="starter",
    prompt_tokens=3,
)


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """Give the root logger back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def _lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_request_is_one_json_line() -> None:
    """A finished request is one line with its figures, and without fields that say nothing."""
    stream = io.StringIO()
    configure_log(style="json", stream=stream)
    log_request(LINE)
    (line,) = _lines(stream)
    assert line.pop("timestamp")
    assert line == {
        "event": "request",
        "level": "info",
        "logger": "mlx_pharos.requests",
        "request_id": "req-1",
        "method": "POST",
        "route": "/v1/chat/completions",
        "status": 200,
        "duration_seconds": 1.2346,
        "model": "starter",
        "prompt_tokens": 3,
    }


def test_lines_of_libraries_look_the_same() -> None:
    """What goes through logging has the same shape, its exception in one field."""
    stream = io.StringIO()
    configure_log(style="json", stream=stream)
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        logging.getLogger("some.library").exception("it %s", "failed")
    (line,) = _lines(stream)
    assert (line["event"], line["level"], line["logger"]) == ("it failed", "error", "some.library")
    assert "ZeroDivisionError" in str(line["exception"])


def test_people_get_text() -> None:
    """A terminal gets one readable line; a stream that is none gets JSON by itself."""
    stream = io.StringIO()
    configure_log(style="console", stream=stream)
    log_request(LINE)
    assert "status=200" in stream.getvalue()
    assert stream.getvalue().count("\n") == 1


def test_the_level_hides_requests() -> None:
    """With warnings alone, a request that went well says nothing and a failed one speaks."""
    stream = io.StringIO()
    configure_log(level="warning", style="json", stream=stream)
    log_request(LINE)
    assert not stream.getvalue()
    log_request(
        RequestLine(request_id="r", method="GET", route="/", status=500, duration_seconds=0.1)
    )
    assert [line["level"] for line in _lines(stream)] == ["error"]
