"""Writing JSON and server-sent events: small, and fast enough for every token."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from ..resilience.errors import PharosError
    from .run import TokenUsage

__all__ = [
    "DONE",
    "KEEP_ALIVE",
    "encode_json",
    "error_event",
    "error_json",
    "finite",
    "usage_json",
]

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment: clients skip it, proxies see that the connection lives."""
DONE = b"data: [DONE]\n\n"

_LOWEST_LOGPROB = -9999.0
"""What OpenAI sends for a token that cannot be drawn: JSON has no infinity."""

encode_json = msgspec.json.Encoder().encode
"""Return a value as JSON in UTF-8. Safe from any thread."""


def error_json(error: PharosError) -> bytes:
    """Return an error as OpenAI's clients expect it."""
    detail = {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }
    return encode_json({"error": detail})


def error_event(error: PharosError) -> bytes:
    """Return the end of a stream that failed."""
    return b"data: " + error_json(error) + b"\n\n" + DONE


def usage_json(usage: TokenUsage) -> bytes:
    """Return the ``usage`` object."""
    return (
        b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,'
        b'"prompt_tokens_details":{"cached_tokens":%d}}'
    ) % (usage.prompt, usage.completion, usage.prompt + usage.completion, usage.cached)


def finite(logprob: float) -> float:
    """Return a log probability that JSON can hold."""
    return logprob if math.isfinite(logprob) else _LOWEST_LOGPROB
