"""The server's log."""

from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING, Literal

import msgspec
import pytest

from mlx_pharos.telemetry.log import configure_log
from mlx_pharos.telemetry.request_line import RequestLine, log_request

if TYPE_CHECKING:
    from collections.abc import Iterator

LINE = RequestLine(
    request_id="req-1",
    method="POST",
    route="/v1/chat/completions",
    status=200,
    duration_seconds=1.2346,
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


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_name_that_is_no_text_is_logged(style: Literal["json", "console"]) -> None:
    """Half a surrogate pair, as a path of bytes has it, loses neither the line nor its other fields."""
    stream = io.StringIO()
    configure_log(style=style, stream=stream)
    log_request(msgspec.structs.replace(LINE, model="half \udc80"))
    assert "1.2346" in stream.getvalue()
    assert 1 == stream.getvalue().count("\n")


def test_handlers_of_others_see_the_fields(caplog: pytest.LogCaptureFixture) -> None:
    """Each field is an attribute of the record; those that say nothing are not there."""
    with caplog.at_level(logging.INFO):
        log_request(LINE)
    (record,) = caplog.records
    assert (200, "starter") == (getattr(record, "status"), getattr(record, "model"))  # noqa: B009
    assert {"status", "prompt_tokens"} <= vars(record).keys()
    assert not hasattr(record, "error_code")
    assert "request" == record.getMessage()


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
    assert "status=200" in stream.getvalue().split()
    assert "RequestLine" not in stream.getvalue()
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
