"""What is made of the engine's events: counts, offsets, and the end of a stream that failed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from mlx_pharos.engine.protocol import TokenLogprob
from mlx_pharos.server.chat_answer import ChatAnswer, ChatStream
from mlx_pharos.server.completion_answer import CompletionAnswer, CompletionStream
from mlx_pharos.server.envelope import Envelope
from mlx_pharos.server.run import Gain, TokenUsage
from mlx_pharos.server.sse import EventStream
from mlx_pharos.telemetry.record import GenerationDraft
from support.client import chat_body, events

if TYPE_CHECKING:
    from support.client import RunningServer


def gain(text: str, *raws: bytes, ending: Any = None) -> Gain:
    """Return a gain of these tokens."""
    tokens = tuple(TokenLogprob(7, raw.decode(errors="replace"), raw, -1.0, ()) for raw in raws)
    return Gain(0, text, tokens, ending)


GAINS = [
    gain("", b"\xf0\x9f"),
    gain("\N{GRINNING FACE}", b"\x98\x80"),
    gain("b", b"b"),
    gain("", b"STOP", b"more", ending="stop"),
]
OFFSETS = [0, 0, 1, 2, 2]
EMPTY: dict[str, Any] = {"content": []}


def test_offsets_are_those_of_the_text() -> None:
    """Parts of one character begin where it begins; a stop string begins where the text ends."""
    answer = CompletionAnswer(Envelope("m"), 1, logprobs=True, alternatives=False)
    answer.add(GAINS)
    (choice,) = json.loads(answer.body(TokenUsage()))["choices"]

    assert "\N{GRINNING FACE}b" == choice["text"]
    assert OFFSETS == choice["logprobs"]["text_offset"]


def test_offsets_of_a_stream_are_the_same() -> None:
    """Also where the end comes with the tokens of the stop string."""
    stream = CompletionStream(
        Envelope("m"), 1, logprobs=True, alternatives=False, include_usage=False
    )
    chunks = stream.chunks(GAINS) + b"data: [DONE]\n\n"
    scored = [event["choices"][0]["logprobs"] for event in events(chunks)]

    assert OFFSETS == [each for one in scored if one for each in one["text_offset"]]


@pytest.mark.parametrize(
    ("ending", "expected"), [("stop", ["é", "b"]), ("length", ["é", "b", "STOP", ""])]
)
def test_a_chat_has_the_log_probabilities_of_its_text(ending: Any, expected: list[str]) -> None:
    """They come with the text; those of a stop string never do, and where nothing was cut all do."""
    scored = [("é", 0), ("b", 1), ("STOP", 2), ("", 2 if ending == "stop" else 6)]
    tokens = [TokenLogprob(7, text, text.encode(), -1.0, (), begin) for text, begin in scored]
    gains = [
        Gain(0, "", (tokens[0],)),
        Gain(0, "éb", (tokens[1], tokens[2])),
        Gain(0, "" if ending == "stop" else "STOP", (tokens[3],), ending),
    ]
    stream = ChatStream(Envelope("m"), 1, logprobs=True, include_usage=False)
    parts = [stream.chunks([each]) for each in gains]
    assert b"" == parts[0]
    assert expected[:2] == _tokens(parts[1])
    assert expected[2:] == _tokens(parts[2])
    answer = ChatAnswer(Envelope("m"), 1, logprobs=True)
    answer.add(gains)
    (choice,) = json.loads(answer.body(TokenUsage()))["choices"]
    assert expected == [token["token"] for token in choice["logprobs"]["content"]]


def _tokens(chunks: bytes) -> list[str]:
    choices = [event["choices"][0] for event in events(chunks + b"data: [DONE]\n\n")]
    return [token["token"] for each in choices for token in (each["logprobs"] or EMPTY)["content"]]


def test_choices_that_read_what_the_first_has_stored_are_not_cached(server: RunningServer) -> None:
    """A new prompt has no cached tokens, however many answers are asked for."""
    message = {"role": "user", "content": "Never seen before, and rather long for this. " * 6}
    body = chat_body(messages=[message], n=3)
    fresh, again = (server.chat(**body).json["usage"] for _ in range(2))

    assert 0 == fresh["prompt_tokens_details"]["cached_tokens"]
    assert again["prompt_tokens_details"]["cached_tokens"] > 100


class BrokenRun:
    """Fails as no run should."""

    finished = False

    def receive(self) -> None:
        """Fail."""
        raise RuntimeError("/secret/path")


def test_a_stream_that_failed_is_found_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """The client is told where to look, and nothing else; the log has the request's id."""
    run: Any = BrokenRun()
    writer = CompletionStream(
        Envelope("m"), 1, logprobs=False, alternatives=False, include_usage=False
    )
    stream = EventStream(
        run,
        writer,
        include_usage=False,
        keep_alive_seconds=1,
        request_id="mine",
        draft=GenerationDraft(operation="text_completion", model="m"),
    )
    (error,) = events(b"".join(stream))

    assert "request id" in error["error"]["message"]
    assert "secret" not in str(error)
    assert "request mine failed" in caplog.text
