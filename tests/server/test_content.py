"""Prompts and answers are on spans where the operator opted in, and else nowhere at all."""

from __future__ import annotations

import io
import json
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from mlx_pharos.telemetry.collector import make_window
from mlx_pharos.telemetry.content import CAPTURE_VARIABLE, CONTENT_LIMIT
from mlx_pharos.telemetry.log import configure_log
from mlx_pharos.telemetry.telemetry import Telemetry, TelemetryOptions
from support.client import COMPLETIONS, chat_body
from support.collector import Collector, attributes_of, collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.client import Answer, RunningServer

SECRET = "the launch code is 8315"
KEYS = ("gen_ai.input.messages", "gen_ai.output.messages")


@contextmanager
def _served(
    serving: Callable[..., Any], model: Any, monkeypatch: pytest.MonkeyPatch, value: str
) -> Iterator[tuple[RunningServer, Collector, io.StringIO]]:
    """Run a server with the variable, a collector for all three signals, and the log in memory."""
    for name in (CAPTURE_VARIABLE, "OTEL_LOGS_EXPORTER"):
        monkeypatch.delenv(name, raising=False)
    if value:
        monkeypatch.setenv(CAPTURE_VARIABLE, value)
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "otlp")
    lines = io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    configure_log(level="debug", style="json", stream=lines)
    try:
        with collector() as target:
            options = TelemetryOptions(model="tiny", otlp_endpoint=target.endpoint)
            telemetry = Telemetry(options, window=make_window())
            with serving(model, telemetry=telemetry) as server:
                yield server, target, lines
    finally:
        root.handlers[:], root.level = before


def _ask(server: RunningServer) -> dict[str, Answer]:
    messages = [{"role": "system", "content": "Sing."}, {"role": "user", "content": SECRET}]
    body = chat_body(messages=messages, max_tokens=8, n=2)
    return {
        "chat": server.chat(**body),
        "text_completion": server.post(
            COMPLETIONS, {"model": "tiny", "prompt": SECRET, "max_tokens": 8}
        ),
    }


def test_opted_in_the_span_has_what_was_asked_and_answered(
    serving: Callable[..., Any], tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Roles and texts as the client sent and got them; log and metrics have none of it."""
    with _served(serving, tiny_model, monkeypatch, "true") as (server, target, lines):
        answers = _ask(server)
    spans = {
        span.name.partition(" ")[0]: attributes_of(span)
        for span in target.spans()
        if span.name.startswith(("chat ", "text_completion "))
    }
    asked, told = (json.loads(spans["chat"][key]) for key in KEYS)
    assert [("system", "Sing."), ("user", SECRET)] == [
        (each["role"], each["parts"][0]["content"]) for each in asked
    ]
    choices = answers["chat"].json["choices"]
    assert [(each["message"]["content"], each["finish_reason"]) for each in choices] == [
        (each["parts"][0]["content"], each["finish_reason"]) for each in told
    ]
    asked, told = (json.loads(spans["text_completion"][key]) for key in KEYS)
    assert SECRET == asked[0]["parts"][0]["content"]
    expected = answers["text_completion"].json["choices"][0]["text"]
    assert expected == told[0]["parts"][0]["content"]
    assert SECRET not in lines.getvalue()
    for signal in ("metrics", "logs"):
        assert target.requests(signal)
        assert SECRET not in str(target.requests(signal))


def test_many_empty_messages_take_no_more_than_one_long_one(
    serving: Callable[..., Any], tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of as many messages as a request may have the first are on the span; and of a request for more
    choices than the server has places for, which is refused, there is nothing.
    """
    with _served(serving, tiny_model, monkeypatch, "true") as (server, target, _):
        messages = [{"role": "user", "content": ""}] * 10_000
        server.chat(**chat_body(messages=messages, max_tokens=1))
        prompts = {"model": "tiny", "prompt": [SECRET] * 128, "n": 128, "max_tokens": 1}
        assert 400 == server.post(COMPLETIONS, prompts).status
    (asked,) = [
        found[KEYS[0]] for span in target.spans() if KEYS[0] in (found := attributes_of(span))
    ]
    assert 0 < len(asked) < 2 * CONTENT_LIMIT
    assert SECRET not in str(target.requests("traces"))


@pytest.mark.parametrize("value", ["", "false"])
def test_else_content_is_nowhere(
    value: str,
    serving: Callable[..., Any],
    tiny_model: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By default no span, metric, log record or line has a word of a prompt or an answer."""
    with _served(serving, tiny_model, monkeypatch, value) as (server, target, lines):
        assert all(200 == answer.status for answer in _ask(server).values())
    for signal in ("traces", "metrics", "logs"):
        assert target.requests(signal)
        assert SECRET not in str(target.requests(signal))
    assert not any(set(KEYS) & attributes_of(span).keys() for span in target.spans())
    assert "mlx_pharos.requests" in lines.getvalue()
    assert SECRET not in lines.getvalue()
