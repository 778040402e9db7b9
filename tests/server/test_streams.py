"""Streams: what is sent when, byte by byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mlx_pharos.engine.protocol import TokenLogprob, TopLogprob
from mlx_pharos.resilience.errors import EngineDiedError
from mlx_pharos.server.chat_answer import ChatAnswer, ChatStream
from mlx_pharos.server.chat_schema import ChatCompletion, ChatCompletionChunk
from mlx_pharos.server.completion_answer import CompletionAnswer, CompletionStream
from mlx_pharos.server.completion_schema import Completion
from mlx_pharos.server.envelope import Envelope
from mlx_pharos.server.model_schema import ErrorAnswer
from mlx_pharos.server.run import ClientGoneError, Gain, TokenUsage
from mlx_pharos.server.sse import EventStream
from mlx_pharos.telemetry.record import GenerationDraft
from support.client import CHAT, COMPLETIONS, chat_body, events

if TYPE_CHECKING:
    from collections.abc import Callable

from support.client import RunningServer

TOKEN = TokenLogprob(
    7, "\N{REPLACEMENT CHARACTER}", b"\xc3", -0.5, (TopLogprob(7, "a", b"a", float("-inf")),)
)
GAINS = [
    [Gain(0, 'He"\n\u2028</script>é😀')],
    [],
    [Gain(1, ""), Gain(0, "llo", (TOKEN,))],
    [Gain(0, "", (), "stop"), Gain(1, "x", (TOKEN, TOKEN), "length")],
]
USAGE = TokenUsage(prompt=3, cached=2, completion=4)


class ScriptedRun:
    """Gives what a test wrote down: gains, errors, or silence for some seconds."""

    def __init__(self, script: list[Any], clock: list[float]) -> None:
        self._script = list(script)
        self._clock = clock
        self.closed = False

    @property
    def finished(self) -> bool:
        """Whether the script is over."""
        return not self._script

    def receive(self) -> list[Gain]:
        """Play the next step."""
        step = self._script.pop(0)
        if isinstance(step, float):
            self._clock[0] += step
            return []
        if isinstance(step, Exception):
            raise step
        gains: list[Gain] = step
        return gains

    def usage(self) -> TokenUsage:
        """Count."""
        return USAGE

    def close(self) -> None:
        """Note it."""
        self.closed = True


def stream_of(script: list[Any], *, include_usage: bool = False) -> tuple[Any, ScriptedRun]:
    """Return a stream of a scripted run, and the run."""
    clock = [0.0]
    run: Any = ScriptedRun(script, clock)
    writer = ChatStream(Envelope("m"), 2, logprobs=False, include_usage=include_usage)
    made = EventStream(
        run,
        writer,
        include_usage=include_usage,
        keep_alive_seconds=5,
        draft=GenerationDraft(operation="chat", model="m"),
        clock=lambda: clock[0],
    )
    return made, run


@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize("include_usage", [False, True])
def test_every_chunk_is_what_the_document_says(logprobs: bool, include_usage: bool) -> None:
    """Chunks are written by hand, and yet valid by the models that OpenAPI is made from."""
    chat = ChatStream(Envelope("m"), 2, logprobs=logprobs, include_usage=include_usage)
    legacy = CompletionStream(
        Envelope("m"), 2, logprobs=logprobs, alternatives=True, include_usage=include_usage
    )
    for writer, model in ((chat, ChatCompletionChunk), (legacy, Completion)):
        sent = writer.first() + b"".join(map(writer.chunks, GAINS)) + writer.usage(USAGE)
        found: list[Any] = [
            model.model_validate(event) for event in events(sent + b"data: [DONE]\n\n")
        ]
        assert found[-1].usage
        assert 7 == found[-1].usage.total_tokens


@pytest.mark.parametrize("logprobs", [False, True])
def test_every_body_is_what_the_document_says(logprobs: bool) -> None:
    """Whole answers are valid by the models that OpenAPI is made from, and add up."""
    chat = ChatAnswer(Envelope("m"), 2, logprobs=logprobs)
    legacy = CompletionAnswer(Envelope("m"), 2, logprobs=logprobs, alternatives=logprobs)
    for gains in GAINS:
        chat.add(gains)
        legacy.add(gains)
    answer = ChatCompletion.model_validate_json(chat.body(USAGE))
    text = Completion.model_validate_json(legacy.body(USAGE))

    assert 'He"\n\u2028</script>é😀llo' == answer.choices[0].message.content
    assert answer.choices[0].message.content == text.choices[0].text
    assert ["stop", "length"] == [choice.finish_reason for choice in text.choices]
    if logprobs:
        assert text.choices[1].logprobs
        assert ["bytes:\\xc3"] * 2 == text.choices[1].logprobs.tokens
        # The token itself is always among them, beyond the number that was asked for.
        assert [{"a": -9999.0, "bytes:\\xc3": -0.5}] * 2 == text.choices[1].logprobs.top_logprobs


def test_tokens_that_wait_together_leave_together() -> None:
    """All that came at once is one piece for the socket."""
    stream, _ = stream_of([[Gain(0, "ab"), Gain(1, "cd")], [Gain(0, "", (), "stop")]])
    _, both, end, done = list(stream)

    assert 2 == both.count(b"data: ")
    assert 1 == end.count(b"data: ")
    assert b"data: [DONE]\n\n" == done


def test_text_that_is_held_back_sends_nothing() -> None:
    """No empty chunks: a token in the middle of a character waits for its rest."""
    stream, _ = stream_of([[Gain(0, "")], [Gain(0, "é")], []])

    assert 3 == len(list(stream))


def test_silence_is_filled_with_comments() -> None:
    """While prefill lasts, proxies and clients see a sign of life every few seconds."""
    stream, _ = stream_of([2.0, 2.0, 2.0, 2.0, 4.0, [Gain(0, "x")], 4.9])
    pieces = list(stream)

    assert 2 == pieces.count(b": keep-alive\n\n")


def test_an_error_in_the_middle_is_an_event_and_the_stream_ends_properly() -> None:
    """What was sent stays, then comes the error in OpenAI's shape, then [DONE]."""
    stream, _ = stream_of([[Gain(0, "x")], EngineDiedError("The engine died.")])
    *_, last = events(b"".join(stream))

    assert "engine_died" == ErrorAnswer.model_validate(last).error.code


def test_an_unexpected_error_is_logged_and_says_nothing_of_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The client learns that the server failed; why is in the log only."""
    stream, _ = stream_of([RuntimeError("/secret/path")])
    sent = b"".join(stream)

    assert b"internal_error" in sent
    assert b"secret" not in sent
    assert "/secret/path" in caplog.text


def test_a_client_that_left_is_not_written_to() -> None:
    """There is nobody to tell."""
    stream, _ = stream_of([[Gain(0, "x")], ClientGoneError()])

    assert 2 == len(list(stream))


@pytest.mark.parametrize("pull", [0, 1, 2])
def test_closing_the_stream_closes_the_run(pull: int) -> None:
    """Also when not a single byte was pulled."""
    stream, run = stream_of([[Gain(0, "x")], [Gain(0, "y")]])
    iterator = iter(stream)
    for _ in range(pull):
        next(iterator)
    stream.close()

    assert run.closed


def test_headers_of_a_stream(server: RunningServer) -> None:
    """Nothing between server and client may collect or keep the events."""
    answer = server.post(CHAT, chat_body(stream=True))

    assert 200 == answer.status
    assert "text/event-stream; charset=utf-8" == answer.headers["Content-Type"]
    assert "no-cache" == answer.headers["Cache-Control"]
    assert "no" == answer.headers["X-Accel-Buffering"]
    assert answer.headers["X-Request-Id"]


def test_real_streams_and_bodies_are_what_the_document_says(server: RunningServer) -> None:
    """What the running server sends is valid, chunk by chunk, with every option on."""
    options = {"stream": True, "stream_options": {"include_usage": True}, "n": 2}
    chat = server.post(CHAT, chat_body(**options, logprobs=True, top_logprobs=2))
    for event in events(chat.body):
        ChatCompletionChunk.model_validate(event)
    legacy = {"model": "tiny", "prompt": ["a", "b"], "logprobs": 2}
    for event in events(server.post(COMPLETIONS, legacy | options).body):
        Completion.model_validate(event)
    ChatCompletion.model_validate(server.chat(logprobs=True).json)
    Completion.model_validate(server.post(COMPLETIONS, legacy).json)


def test_the_first_bytes_come_while_the_request_still_waits(
    tiny_model: Any, serving: Callable[..., Any]
) -> None:
    """A queued stream has its headers and role at once, and comments while it waits."""
    with serving(tiny_model, max_batch=1, max_queue=4, keep_alive_seconds=0.05) as server:
        first = server.send(CHAT, **chat_body(max_tokens=8000, stream=True))
        assert first.recv(65536)
        second = server.send(CHAT, **chat_body(stream=True))
        seen = b""
        while b": keep-alive" not in seen:
            seen += second.recv(65536)
        assert b'"role":"assistant"' in seen
        assert 2 == server.engine.in_flight
        first.close()
        while b"[DONE]" not in seen:
            seen += second.recv(65536)
        second.close()
