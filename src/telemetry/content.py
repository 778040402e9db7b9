"""Prompts and answers on the generation's span: only where the operator opted in.

``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` does that, with the values of the
semantic conventions for GenAI. Nothing of it is ever in a metric or in the log: records for
those have no place for it. What is kept is bounded, because spans wait in a queue.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "CAPTURE_VARIABLE",
    "CONTENT_LIMIT",
    "MESSAGE_COST",
    "Content",
    "capture_problem",
    "captures_content",
]

CAPTURE_VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
CONTENT_LIMIT = 16_384
"""Characters of a request's prompts, and as many of its answers, each message counted as
``MESSAGE_COST`` more.

A queue of 2048 spans holds some 400 requests, or 1024 that were refused and have no answer: some 13
and 17 million characters at most, and as many bytes, or up to four times as many where characters
need more than one. A batch of 512 spans has 256 requests at most, and stays below the 64 MiB of one
export even where JSON writes each character with six."""
MESSAGE_COST = 160
"""Characters that a message counts as beside its text: above the bytes of the objects that hold it,
and the characters that JSON has around it."""
_ON = frozenset({"true", "span_only", "span_and_event"})
_OFF = frozenset({"", "false", "no_content"})
_CUT = "…"


def captures_content() -> bool:
    """Whether the operator wants prompts and answers on spans."""
    return _value() in _ON


def capture_problem() -> str:
    """Return what is wrong with the variable, as a sentence without its name; empty if nothing is."""
    value = _value()
    if value in _ON | _OFF:
        return ""
    return f"should be true or false; it is {value!r}"


def _value() -> str:
    return os.environ.get(CAPTURE_VARIABLE, "").strip().lower()


class Content:
    """The messages of one request. Belongs to the thread that answers it until the record is made.

    What it holds is bounded by ``CONTENT_LIMIT`` on each side, and by one message's cost.
    """

    def __init__(self, messages: Iterable[tuple[str, str]], choices: int) -> None:
        """Keep the beginning of what was asked.

        Args:
            messages: Role and text of each message, or of each prompt.
            choices: How many answers there will be; of very many the first are kept.
        """
        self._input: list[tuple[str, str]] = []
        self._input_is_cut = False
        self._keep_beginning(messages)
        kept = min(choices, CONTENT_LIMIT // MESSAGE_COST)
        self._left = CONTENT_LIMIT - MESSAGE_COST * max(0, kept - 1)
        # Strings and no lists of pieces: a piece of some characters would take ten times its length.
        self._texts = [""] * kept
        self._endings = [""] * kept
        self._cut: set[int] = set()
        """The choices of whose text something is missing."""

    def gain(self, choice: int, text: str, ending: str | None = None) -> None:
        """Keep the beginning of what a choice gained."""
        if choice >= len(self._texts):
            return
        kept = text[: self._left]
        self._texts[choice] += kept
        self._left -= len(kept)
        if len(kept) < len(text):
            self._cut.add(choice)
        if ending is not None:
            self._endings[choice] = ending

    def input_messages(self) -> str:
        """Return the prompts as the conventions have them: JSON, roles with their parts."""
        last = len(self._input) - 1 if self._input_is_cut else -1
        return _json(
            [
                _message(role, text, is_cut=place == last)
                for place, (role, text) in enumerate(self._input)
            ]
        )

    def output_messages(self) -> str:
        """Return the answers likewise, as far as they went."""
        answers = enumerate(zip(self._texts, self._endings, strict=True))
        return _json(
            [
                _message("assistant", text, is_cut=choice in self._cut)
                | ({"finish_reason": end} if end else {})
                for choice, (text, end) in answers
            ]
        )

    def _keep_beginning(self, messages: Iterable[tuple[str, str]]) -> None:
        left = CONTENT_LIMIT
        for role, text in messages:
            if left <= 0:
                self._input_is_cut = True
                return
            self._input.append((role, text[:left]))
            self._input_is_cut = len(text) > left
            left -= len(text) + MESSAGE_COST


def _message(role: str, text: str, *, is_cut: bool) -> dict[str, Any]:
    # The mark is no part of what waits: it would double the width of each character of a Latin text.
    content = text + _CUT if is_cut else text
    return {"role": role, "parts": [{"type": "text", "content": content}]}


def _json(value: object) -> str:
    # Half a surrogate pair, as generated text may end in one, could not be sent as it is.
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()
