"""The chat family's answer: one body, or the chunks of a stream.

The constant parts of a chunk are made once per choice: per token there is
left one string to encode and three to join.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from .json_text import encode_json, finite, usage_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..engine.protocol import TokenLogprob
    from .envelope import Envelope
    from .run import Gain, TokenUsage

__all__ = ["ChatAnswer", "ChatStream"]


class ChatAnswer:
    """Collects the choices of an answer that is sent as one body."""

    def __init__(self, envelope: Envelope, choices: int, *, logprobs: bool) -> None:
        self._envelope = envelope
        self._texts: list[list[str]] = [[] for _ in range(choices)]
        self._endings: list[str] = ["stop"] * choices
        self._logprobs: list[list[dict[str, Any]]] | None = None
        if logprobs:
            self._logprobs = [[] for _ in range(choices)]
        self._scores = [_Scores() for _ in range(choices)]

    def add(self, gains: Iterable[Gain]) -> None:
        """Take what the choices gained."""
        for gain in gains:
            self._texts[gain.choice].append(gain.text)
            if self._logprobs is not None:
                self._logprobs[gain.choice] += self._scores[gain.choice].take(gain)
            if gain.ending is not None:
                self._endings[gain.choice] = gain.ending

    def body(self, usage: TokenUsage) -> bytes:
        """Return the whole answer."""
        start = encode_json(
            {
                "id": f"chatcmpl-{self._envelope.token}",
                "object": "chat.completion",
                "created": self._envelope.created,
                "model": self._envelope.model,
                "system_fingerprint": self._envelope.fingerprint,
                "choices": [self._choice(index) for index in range(len(self._texts))],
            }
        )
        return start[:-1] + b',"usage":' + usage_json(usage) + b"}"

    def _choice(self, index: int) -> dict[str, Any]:
        logprobs = None
        if self._logprobs is not None:
            logprobs = {"content": self._logprobs[index], "refusal": None}
        text = "".join(self._texts[index])
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": logprobs,
            "finish_reason": self._endings[index],
        }


class ChatStream:
    """Writes the chunks of a stream."""

    def __init__(
        self, envelope: Envelope, choices: int, *, logprobs: bool, include_usage: bool
    ) -> None:
        start = encode_json(
            {
                "id": f"chatcmpl-{envelope.token}",
                "object": "chat.completion.chunk",
                "created": envelope.created,
                "model": envelope.model,
                "system_fingerprint": envelope.fingerprint,
            }
        )
        self._head = b"data: " + start[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._scores = [_Scores() for _ in range(choices)] if logprobs else None
        self._open = [
            self._head + b'{"index":%d,"delta":{"content":' % index for index in range(choices)
        ]
        self._close = b'},"logprobs":null,"finish_reason":null}' + self._tail

    def first(self) -> bytes:
        """Return what is sent before the first token: the role of every choice."""
        close = b',"role":"assistant","refusal":null' + self._close
        return b"".join(start + b'""' + close for start in self._open)

    def chunks(self, gains: Sequence[Gain]) -> bytes:
        """Return the chunks for what the choices gained; empty where nothing can be shown yet."""
        parts: list[bytes] = []
        for gain in gains:
            scores = self._scores[gain.choice].take(gain) if self._scores else []
            if scores:
                parts += (self._open[gain.choice], encode_json(gain.text), self._scored(scores))
            elif gain.text:
                parts += (self._open[gain.choice], encode_json(gain.text), self._close)
            if gain.ending is not None:
                parts.append(self._end(gain))
        return b"".join(parts)

    def usage(self, usage: TokenUsage) -> bytes:
        """Return the chunk that carries the usage."""
        return self._head + b'],"usage":' + usage_json(usage) + b"}\n\n"

    def _scored(self, scores: list[dict[str, Any]]) -> bytes:
        logprobs = {"content": scores, "refusal": None}
        return b'},"logprobs":' + encode_json(logprobs) + b',"finish_reason":null}' + self._tail

    def _end(self, gain: Gain) -> bytes:
        choice = b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":%b}' % (
            gain.choice,
            encode_json(gain.ending),
        )
        return self._head + choice + self._tail


class _Scores:
    """The log probabilities of a choice, each with the text that its token has a part in.

    They wait for text that is held back, and go with text that a stop string cut off.
    """

    def __init__(self) -> None:
        self._length = 0
        """Of the choice's text so far."""
        self._held: list[TokenLogprob] = []

    def take(self, gain: Gain) -> list[dict[str, Any]]:
        """Take what the choice gained, and return what is due as OpenAI has it."""
        self._length += len(gain.text)
        self._held += gain.logprobs
        due = bisect_left(self._held, self._length, key=lambda token: token.begin)
        if gain.ending == "length":
            due = len(self._held)  # nothing was cut: they have no text
        taken, self._held = self._held[:due], self._held[due:]
        return [_token_logprob(token) for token in taken]


def _token_logprob(token: TokenLogprob) -> dict[str, Any]:
    return {
        "token": token.text,
        "logprob": finite(token.logprob),
        "bytes": list(token.raw),
        "top_logprobs": [
            {"token": top.text, "logprob": finite(top.logprob), "bytes": list(top.raw)}
            for top in token.top
        ],
    }
