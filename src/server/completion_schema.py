"""``POST /v1/completions``: the request as pydantic reads it, and the answer's shape."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from .generation_fields import MAX_CHOICES, GenerationFields
from .strict_model import NotOffered, StrictModel, field_error
from .usage_schema import Usage  # noqa: TC001 - pydantic needs it at runtime

__all__ = ["Completion", "CompletionRequest"]

_MAX_TOKENS = 2**22
"""Beyond the context of every model; so many ids are read in a fraction of a second."""

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[list[TokenId], Field(min_length=1, max_length=_MAX_TOKENS, fail_fast=True)]
Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)]
TokenLists = Annotated[list[Tokens], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)]


def _kind_of_prompt(value: object) -> str | None:
    if isinstance(value, str):
        return "<text>"
    if not isinstance(value, list):
        return None
    first = value[0] if value else ""
    if isinstance(first, list):
        return "<token lists>"
    return "<texts>" if isinstance(first, str) else "<tokens>"


PromptField = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[Texts, Tag("<texts>")]
    | Annotated[Tokens, Tag("<tokens>")]
    | Annotated[TokenLists, Tag("<token lists>")],
    Discriminator(
        _kind_of_prompt,
        custom_error_type="prompt",
        custom_error_message=(
            "Input should be a string, a list of strings, a list of token ids, "
            "or a list of lists of token ids"
        ),
    ),
]


class CompletionRequest(GenerationFields):
    """Text to go on with."""

    prompt: PromptField
    """Several prompts get their choices one after the other: ``n`` for the first, and so on."""
    logprobs: int | None = Field(None, ge=0, le=5)
    """Send the log probability of each token, and of this many alternatives."""
    echo: bool | None = None
    """Send the prompt's text before the answer."""
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES)
    """Only with the value of ``n``: all answers are sent."""
    suffix: NotOffered = None

    @model_validator(mode="after")
    def _fields_agree(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise field_error("best_of", "Only the value of 'n' is offered; leave it out")
        if self.echo and self.logprobs is not None:
            raise field_error("logprobs", "Log probabilities of an echoed prompt are not offered")
        return self


class CompletionLogprobs(StrictModel):
    """The answer's tokens, in four lists of equal length."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    """Null where no alternatives were asked for."""
    text_offset: list[int]
    """Where each token begins, in characters of the choice's text."""


class CompletionChoice(StrictModel):
    """One answer, or what it gained since the last chunk."""

    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    """Null in a stream until the choice ends."""


class Completion(StrictModel):
    """The answer; in a stream, each event has this shape too."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    """Always there without ``stream``; with it, in the last chunk where asked for."""
