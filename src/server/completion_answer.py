"""The legacy completion family's answer: one body, or the chunks of a stream."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Any

from .json_text import KEEP_ALIVE, encode_json, finite, usage_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .envelope import Envelope
    from .run import Gain, TokenUsage

__all__ = ["CompletionAnswer", "CompletionStream"]


class _Tokens:
    """The tokens of a choice in OpenAI's four lists. Offsets count characters of its text."""

    def __init__(self, *, alternatives: bool) -> None:
        self._alternatives = alternatives
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        """A character may come in several tokens: they begin where it begins."""
        self._offset = 0
        self._length = 0
        """Of the choice's text so far."""
        self._lists = self._empty()

    def add(self, gain: Gain) -> None:
        """Take the tokens that the choice gained."""
        lists = self._lists
        self._length += len(gain.text)
        for token in gain.logprobs:
            text = _name(token.text, token.raw)
            lists["tokens"].append(text)
            lists["token_logprobs"].append(finite(token.logprob))
            lists["text_offset"].append(self._offset)
            self._offset += len(self._decoder.decode(token.raw))
            if self._alternatives:
                tops = {_name(top.text, top.raw): finite(top.logprob) for top in token.top}
                tops.setdefault(text, lists["token_logprobs"][-1])  # OpenAI: up to one more
                lists["top_logprobs"].append(tops)
        if gain.ending is not None:
            # The tokens of a stop string, and of the end itself, have no place in the text.
            lists["text_offset"] = [min(each, self._length) for each in lists["text_offset"]]

    def take(self) -> dict[str, Any]:
        """Return what was added since the last call."""
        lists, self._lists = self._lists, self._empty()
        return lists

    def _empty(self) -> dict[str, Any]:
        top: list[dict[str, float]] | None = [] if self._alternatives else None
        return {"tokens": [], "token_logprobs": [], "top_logprobs": top, "text_offset": []}


class CompletionAnswer:
    """Collects the choices of an answer that is sent as one body."""

    def __init__(
        self, envelope: Envelope, choices: int, *, logprobs: bool, alternatives: bool
    ) -> None:
        self._envelope = envelope
        self._texts: list[list[str]] = [[] for _ in range(choices)]
        self._endings: list[str] = ["stop"] * choices
        self._tokens: list[_Tokens] | None = None
        if logprobs:
            self._tokens = [_Tokens(alternatives=alternatives) for _ in range(choices)]

    def add(self, gains: Iterable[Gain]) -> None:
        """Take what the choices gained."""
        for gain in gains:
            self._texts[gain.choice].append(gain.text)
            if self._tokens is not None:
                self._tokens[gain.choice].add(gain)
            if gain.ending is not None:
                self._endings[gain.choice] = gain.ending

    def body(self, usage: TokenUsage) -> bytes:
        """Return the whole answer."""
        start = encode_json(
            {
                **_envelope_fields(self._envelope),
                "choices": [self._choice(index) for index in range(len(self._texts))],
            }
        )
        return start[:-1] + b',"usage":' + usage_json(usage) + b"}"

    def _choice(self, index: int) -> dict[str, Any]:
        return {
            "text": "".join(self._texts[index]),
            "index": index,
            "logprobs": None if self._tokens is None else self._tokens[index].take(),
            "finish_reason": self._endings[index],
        }


class CompletionStream:
    """Writes the chunks of a stream; see :class:`.chat_answer.ChatStream`."""

    def __init__(
        self,
        envelope: Envelope,
        choices: int,
        *,
        logprobs: bool,
        alternatives: bool,
        include_usage: bool,
    ) -> None:
        start = encode_json(_envelope_fields(envelope))
        self._head = b"data: " + start[:-1] + b',"choices":['
        self._open = self._head + b'{"text":'
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._close = [
            b',"index":%d,"logprobs":null,"finish_reason":null}' % index + self._tail
            for index in range(choices)
        ]
        self._tokens: list[_Tokens] | None = None
        if logprobs:
            self._tokens = [_Tokens(alternatives=alternatives) for _ in range(choices)]

    def first(self) -> bytes:
        """Return what is sent before the first token: this family has no role to announce."""
        return KEEP_ALIVE

    def chunks(self, gains: Sequence[Gain]) -> bytes:
        """Return the chunks for what the choices gained; empty where nothing can be shown yet."""
        parts: list[bytes] = []
        for gain in gains:
            if self._tokens is not None and gain.logprobs:
                parts += (self._open, encode_json(gain.text), self._scored(self._tokens, gain))
            elif gain.text:
                if self._tokens is not None:
                    self._tokens[gain.choice].add(gain)
                parts += (self._open, encode_json(gain.text), self._close[gain.choice])
            if gain.ending is not None:
                parts.append(self._end(gain))
        return b"".join(parts)

    def usage(self, usage: TokenUsage) -> bytes:
        """Return the chunk that carries the usage."""
        return self._head + b'],"usage":' + usage_json(usage) + b"}\n\n"

    def _scored(self, tokens: list[_Tokens], gain: Gain) -> bytes:
        tokens[gain.choice].add(gain)
        logprobs = encode_json(tokens[gain.choice].take())
        return (
            b',"index":%d,"logprobs":%b,"finish_reason":null}' % (gain.choice, logprobs)
            + self._tail
        )

    def _end(self, gain: Gain) -> bytes:
        choice = b'{"text":"","index":%d,"logprobs":null,"finish_reason":%b}' % (
            gain.choice,
            encode_json(gain.ending),
        )
        return self._head + choice + self._tail


def _envelope_fields(envelope: Envelope) -> dict[str, Any]:
    return {
        "id": f"cmpl-{envelope.token}",
        "object": "text_completion",
        "created": envelope.created,
        "model": envelope.model,
        "system_fingerprint": envelope.fingerprint,
    }


def _name(text: str, raw: bytes) -> str:
    r"""Return a token's text, or ``bytes:\xc3`` where it is only a part of a character.

    This form is OpenAI's; without it two such tokens would be one key.
    """
    if text.encode() == raw or "\N{REPLACEMENT CHARACTER}" not in text:
        return text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
