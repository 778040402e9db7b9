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

__all__ = ["CAPTURE_VARIABLE", "CONTENT_LIMIT", "Content", "capture_problem", "captures_content"]

CAPTURE_VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
CONTENT_LIMIT = 16_384
"""Characters of a request's prompts, and as many of its answers. A queue of 2048 spans holds some
400 requests, and so 13 MB of text at most."""
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
    """The messages of one request. Belongs to the thread that answers it until the record is made."""

    def __init__(self, messages: Iterable[tuple[str, str]], choices: int) -> None:
        """Keep the beginning of what was asked.

        Args:
            messages: Role and text of each message, or of each prompt.
            choices: How many answers there will be.
        """
        self._input: list[tuple[str, str]] = []
        left = CONTENT_LIMIT
        for role, text in messages:
            self._input.append((role, _cut(text, left)))
            left -= len(text)
            if left <= 0:
                break
        self._left = CONTENT_LIMIT
        self._texts: list[list[str]] = [[] for _ in range(choices)]
        self._endings = [""] * choices

    def gain(self, choice: int, text: str, ending: str | None = None) -> None:
        """Keep the beginning of what a choice gained."""
        if text and self._left > 0:
            self._texts[choice].append(_cut(text, self._left))
            self._left -= len(text)
        if ending is not None:
            self._endings[choice] = ending

    def input_messages(self) -> str:
        """Return the prompts as the conventions have them: JSON, roles with their parts."""
        return _json([_message(role, text) for role, text in self._input])

    def output_messages(self) -> str:
        """Return the answers likewise, as far as they went."""
        return _json(
            [
                _message("assistant", "".join(texts)) | ({"finish_reason": end} if end else {})
                for texts, end in zip(self._texts, self._endings, strict=True)
            ]
        )


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": text}]}


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length] + _CUT


def _json(value: object) -> str:
    # Half a surrogate pair, as generated text may end in one, could not be sent as it is.
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()
