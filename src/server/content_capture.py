"""What a span says of a request's content, where the operator opted in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..engine.protocol import ChatPrompt, TextPrompt
from ..telemetry.content import Content

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..engine.protocol import Prompt
    from .call import GenerationCall

__all__ = ["capture"]


def capture(call: GenerationCall) -> Content:
    """Return the content of a call, which still has to gain its answers."""
    messages = (message for prompt in call.prompts for message in _messages(prompt))
    return Content(messages, choices=call.n * len(call.prompts))


def _messages(prompt: Prompt) -> Iterator[tuple[str, str]]:
    match prompt:
        case ChatPrompt():
            yield from ((message.role, message.content) for message in prompt.messages)
        case TextPrompt():
            yield "user", prompt.text
        case _:
            yield "user", f"[{len(prompt.tokens)} token ids]"
