"""``POST /v1/chat/completions``: the request as pydantic reads it, and the answer's shape.

The answer's models exist for the OpenAPI document, and a test holds the bytes
that are really sent against them; answers are written without pydantic.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from .generation_fields import GenerationFields
from .strict_model import EmptyList, NotOffered, StrictModel, field_error
from .usage_schema import Usage  # noqa: TC001 - pydantic needs it at runtime

__all__ = [
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatRequest",
    "ChatTokenLogprob",
    "TextPart",
]

_MAX_MESSAGES = 10_000
"""A conversation of this many does not fit into the context of any model."""
_MAX_PARTS = 10_000


class TextPart(StrictModel):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


def _text_or_parts(value: object) -> str | None:
    if isinstance(value, str):
        return "<text>"
    return "<parts>" if isinstance(value, list) else None


Content = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[
        Annotated[list[TextPart], Field(min_length=1, max_length=_MAX_PARTS, fail_fast=True)],
        Tag("<parts>"),
    ],
    Discriminator(
        _text_or_parts,
        custom_error_type="content",
        custom_error_message="Input should be a string or a list of text parts",
    ),
]
Name = Annotated[str, Field(min_length=1, max_length=64)]


class SystemMessage(StrictModel):
    """Instructions. ``developer`` is OpenAI's newer name of ``system``."""

    role: Literal["system", "developer"]
    content: Content
    name: Name | None = None


class UserMessage(StrictModel):
    """What the person says."""

    role: Literal["user"]
    content: Content
    name: Name | None = None


class AssistantMessage(StrictModel):
    """An earlier answer, as this server or OpenAI's sent it."""

    role: Literal["assistant"]
    content: Content
    name: Name | None = None
    refusal: None = None
    annotations: EmptyList | None = None
    audio: NotOffered = None
    tool_calls: EmptyList | None = None
    function_call: NotOffered = None


class ToolMessage(StrictModel):
    """The result of a tool, for models whose chat template knows the role."""

    role: Literal["tool"]
    content: Content
    tool_call_id: Annotated[str, Field(max_length=128)] | None = None
    """Which call this answers. Templates go by the order of the messages."""


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class TextFormat(StrictModel):
    """Free text, the only format there is."""

    type: Literal["text"]


class ChatRequest(GenerationFields):
    """A conversation to answer."""

    messages: list[Message] = Field(min_length=1, max_length=_MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    """OpenAI's newer name of ``max_tokens``. Left out, an answer may fill the context window."""
    logprobs: bool | None = None
    """Send the log probability of each token."""
    top_logprobs: int | None = Field(None, ge=0, le=20)
    """How many alternatives come with each token; only with ``logprobs``."""

    tools: EmptyList | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    """Without effect, as there are no tools."""
    functions: EmptyList | None = None
    function_call: Literal["none", "auto"] | None = None
    response_format: TextFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1, fail_fast=True)] | None = None
    audio: NotOffered = None
    prediction: NotOffered = None
    reasoning_effort: NotOffered = None
    verbosity: NotOffered = None
    web_search_options: NotOffered = None
    store: Literal[False] | None = None
    """Nothing is ever stored."""
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: Annotated[str, Field(max_length=512)] | None = None
    """Who asks; not used."""
    prompt_cache_key: Annotated[str, Field(max_length=512)] | None = None
    """Not used: the prompt cache finds shared beginnings by itself."""

    @model_validator(mode="after")
    def _fields_agree(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise field_error("top_logprobs", "Only allowed together with 'logprobs': true")
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise field_error(
                "max_completion_tokens", "Differs from 'max_tokens'; send one of the two"
            )
        return self


class TopLogprob(StrictModel):
    """An alternative at a token's place."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(StrictModel):
    """The answer's tokens."""

    content: list[ChatTokenLogprob]
    refusal: None


class AnswerMessage(StrictModel):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(StrictModel):
    """One of ``n`` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(StrictModel):
    """The answer to a request without ``stream``."""

    id: str
    object: Literal["chat.completion"]
    created: int
    """Seconds since 1970."""
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(StrictModel):
    """What an answer gained. The first one of a choice has the role, the last one is empty."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None


class ChatChunkChoice(StrictModel):
    """What one of ``n`` answers gained."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class ChatCompletionChunk(StrictModel):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    """Empty in the chunk that carries the usage."""
    usage: Usage | None = None
    """With ``stream_options.include_usage`` in every chunk: null in all but the last."""
