"""The API families: each is a pair of translations around the generation core.

A family reads a body into a :class:`.call.GenerationCall`, and writes the
run's gains as its own kind of answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from ..engine.protocol import ChatMessage, ChatPrompt, TextPrompt, TokenPrompt
from ..resilience.errors import InvalidRequestError
from .call import GenerationCall
from .chat_answer import ChatAnswer, ChatStream
from .chat_schema import ChatRequest, SystemMessage, ToolMessage
from .completion_answer import CompletionAnswer, CompletionStream
from .completion_schema import CompletionRequest
from .strict_model import validate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..engine.protocol import Prompt
    from .chat_schema import Message
    from .envelope import Envelope
    from .options import RequestDefaults
    from .run import Gain, TokenUsage
    from .sse import StreamWriter

__all__ = ["ChatFamily", "CompletionFamily", "Family"]


class AnswerWriter(Protocol):
    """How a family writes an answer in one body."""

    def add(self, gains: Iterable[Gain]) -> None:
        """Take what the choices gained."""

    def body(self, usage: TokenUsage) -> bytes:
        """Return the whole answer."""


class Family(Protocol):
    """The pair of translations."""

    operation: ClassVar[Literal["chat", "text_completion"]]
    """What telemetry calls it."""
    prompt_field: ClassVar[str]
    """The request field that the engine's complaints about the prompt are about."""

    def read(self, body: dict[str, Any], defaults: RequestDefaults) -> GenerationCall:
        """Return the call that a body asks for; raises :class:`InvalidRequestError`."""

    def stream(self, call: GenerationCall, envelope: Envelope, choices: int) -> StreamWriter:
        """Return what writes the answer's chunks."""

    def answer(self, call: GenerationCall, envelope: Envelope, choices: int) -> AnswerWriter:
        """Return what writes the answer's body."""


class ChatFamily:
    """``/v1/chat/completions``."""

    operation: ClassVar[Literal["chat", "text_completion"]] = "chat"
    prompt_field: ClassVar[str] = "messages"

    def read(self, body: dict[str, Any], defaults: RequestDefaults) -> GenerationCall:
        """Return the call that a body asks for; raises :class:`InvalidRequestError`."""
        request = validate(ChatRequest, body)
        limit = request.max_completion_tokens or request.max_tokens or defaults.max_tokens
        return GenerationCall(
            model=request.model,
            prompts=(ChatPrompt(tuple(map(_chat_message, request.messages))),),
            sampling=request.sampling(defaults.sampling),
            n=request.n or 1,
            max_tokens=limit,
            stop=request.stop_strings,
            logprobs=bool(request.logprobs),
            top_logprobs=request.top_logprobs or 0,
            echo=False,
            stream=bool(request.stream),
            include_usage=request.include_usage,
        )

    def stream(self, call: GenerationCall, envelope: Envelope, choices: int) -> ChatStream:
        """Return what writes the answer's chunks."""
        return ChatStream(
            envelope, choices, logprobs=call.logprobs, include_usage=call.include_usage
        )

    def answer(self, call: GenerationCall, envelope: Envelope, choices: int) -> ChatAnswer:
        """Return what writes the answer's body."""
        return ChatAnswer(envelope, choices, logprobs=call.logprobs)


class CompletionFamily:
    """``/v1/completions``."""

    operation: ClassVar[Literal["chat", "text_completion"]] = "text_completion"
    prompt_field: ClassVar[str] = "prompt"

    def read(self, body: dict[str, Any], defaults: RequestDefaults) -> GenerationCall:
        """Return the call that a body asks for; raises :class:`InvalidRequestError`."""
        request = validate(CompletionRequest, body)
        return GenerationCall(
            model=request.model,
            prompts=_prompts(request.prompt),
            sampling=request.sampling(defaults.sampling),
            n=request.n or 1,
            max_tokens=request.max_tokens or defaults.completion_max_tokens,
            stop=request.stop_strings,
            logprobs=request.logprobs is not None,
            top_logprobs=request.logprobs or 0,
            echo=bool(request.echo),
            stream=bool(request.stream),
            include_usage=request.include_usage,
        )

    def stream(self, call: GenerationCall, envelope: Envelope, choices: int) -> CompletionStream:
        """Return what writes the answer's chunks."""
        return CompletionStream(
            envelope,
            choices,
            logprobs=call.logprobs,
            alternatives=call.top_logprobs > 0,
            include_usage=call.include_usage,
        )

    def answer(self, call: GenerationCall, envelope: Envelope, choices: int) -> CompletionAnswer:
        """Return what writes the answer's body."""
        return CompletionAnswer(
            envelope, choices, logprobs=call.logprobs, alternatives=call.top_logprobs > 0
        )


def check_capacity(call: GenerationCall, capacity: int, prompt_field: str) -> None:
    """Raise where a call has more choices than could ever run and wait at once.

    Args:
        call: What to generate.
        capacity: Sequences in batch and queue together.
        prompt_field: Where the prompts are.
    """
    choices = call.n * len(call.prompts)
    if choices > capacity:
        message = (
            f"The request asks for {choices} answers (prompts times 'n'), but this server holds "
            f"{capacity} at once. Split the request."
        )
        raise InvalidRequestError(message, param="n" if call.n > 1 else prompt_field)


def _chat_message(message: Message) -> ChatMessage:
    content = message.content
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    # Chat templates know "system"; "developer" is OpenAI's newer name of the same.
    role = "system" if isinstance(message, SystemMessage) else message.role
    name = None if isinstance(message, ToolMessage) else message.name
    return ChatMessage(role=role, content=text, name=name)


def _prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> tuple[Prompt, ...]:
    if isinstance(prompt, str):
        return (TextPrompt(prompt),)
    if isinstance(prompt[0], int):
        return (TokenPrompt(tuple(prompt)),)
    return tuple(
        TextPrompt(one) if isinstance(one, str) else TokenPrompt(tuple(one)) for one in prompt
    )
