"""The request fields that chat and legacy completions share."""

from __future__ import annotations

import secrets
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from ..engine.protocol import Sampling
from .strict_model import StrictModel, field_error

__all__ = ["MAX_CHOICES", "GenerationFields", "StopStrings", "StreamOptions"]

MAX_CHOICES = 128
"""OpenAI's bound of ``n``; how many run at once is bounded by batch and queue."""
_SEED_BITS = 64
_MAX_BIASES = 1024
_ONE_TOKEN = 1e-6
"""A ``top_p`` below this keeps one token: no vocabulary has a million equal ones."""
_INT32 = 2**31
_INT64 = 2**63

StopString = Annotated[str, Field(min_length=1, max_length=256)]


def _string_or_list(value: object) -> str | None:
    if isinstance(value, str):
        return "<string>"
    return "<list>" if isinstance(value, list) else None


StopStrings = Annotated[
    Annotated[StopString, Tag("<string>")]
    | Annotated[Annotated[list[StopString], Field(max_length=16, fail_fast=True)], Tag("<list>")],
    Discriminator(
        _string_or_list,
        custom_error_type="stop",
        custom_error_message="Input should be a string or a list of strings",
    ),
]

TokenKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
Biases = Annotated[
    dict[TokenKey, Bias],
    Field(max_length=_MAX_BIASES, json_schema_extra={"additionalProperties": False}),
]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


class StreamOptions(StrictModel):
    """How a stream ends."""

    include_usage: bool | None = None
    """Send a last chunk with the usage and no choices."""
    include_obfuscation: Literal[False] | None = None
    """Padding against traffic analysis is not offered."""


class GenerationFields(StrictModel):
    """How to draw the answer, when to end it, and how to send it."""

    model: str = Field(min_length=1, max_length=512)
    """A served name, see ``GET /v1/models``."""
    temperature: float | None = Field(None, ge=0, le=2)
    """0 is greedy; higher is more random."""
    top_p: float | None = Field(None, ge=0, le=1)
    """Draw from the smallest set of tokens whose probabilities sum to this; 0 takes one token."""
    top_k: int | None = Field(None, ge=-1, lt=_INT32)
    """Draw from this many most probable tokens; 0 and -1 are off. An extension to OpenAI's API."""
    min_p: float | None = Field(None, ge=0, le=1)
    """Drop tokens below this share of the most probable one. An extension to OpenAI's API."""
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    """Above 1 avoids tokens of prompt and answer. An extension to OpenAI's API."""
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    """Subtracted from the logit of tokens that the answer has."""
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    """Subtracted from the logit of tokens once per occurrence in the answer."""
    logit_bias: Biases | None = None
    """Added to the logit of a token, by token id."""
    seed: int | None = Field(None, ge=-_INT64, lt=_INT64)
    """Same seed, same text; left out, every request draws its own."""
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    """How many answers per prompt."""
    max_tokens: int | None = Field(None, ge=1, lt=_INT32)
    """Tokens of the answer at most."""
    stop: StopStrings | None = None
    """Strings that end the answer; they are not part of it. At most 16."""
    stream: bool | None = None
    """Send the answer as server-sent events while it grows."""
    stream_options: StreamOptions | None = None
    """Only with ``stream``."""
    user: str | None = Field(None, max_length=512)
    """Who asks; not used."""
    metadata: Metadata | None = None
    """The client's own notes; not used."""

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> GenerationFields:
        if self.stream_options is not None and not self.stream:
            raise field_error("stream_options", "Only allowed together with 'stream': true")
        return self

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as the engine wants it."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, defaults: Sampling) -> Sampling:
        """Return how to draw, with the server's defaults and a seed where none is given."""
        top_k = defaults.top_k if self.top_k is None else max(self.top_k, 0)
        seed = secrets.randbits(_SEED_BITS) if self.seed is None else self.seed % 2**_SEED_BITS
        temperature = _given(self.temperature, defaults.temperature)
        top_p = _given(self.top_p, defaults.top_p)
        if top_p < _ONE_TOKEN:
            # mlx-lm reads 0 as "off"; the smallest set that holds any probability is one token.
            temperature, top_p = 0.0, 1.0
        return Sampling(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=_given(self.min_p, defaults.min_p),
            repetition_penalty=_given(self.repetition_penalty, defaults.repetition_penalty),
            presence_penalty=_given(self.presence_penalty, 0.0),
            frequency_penalty=_given(self.frequency_penalty, 0.0),
            logit_bias=tuple((int(k), float(v)) for k, v in (self.logit_bias or {}).items()),
            seed=seed,
        )


def _given(value: float | None, default: float) -> float:
    return default if value is None else float(value)
