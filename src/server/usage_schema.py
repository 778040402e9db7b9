"""The token counts that every answer carries."""

from __future__ import annotations

from .strict_model import StrictModel

__all__ = ["PromptTokensDetails", "Usage"]


class PromptTokensDetails(StrictModel):
    """Where the prompt's tokens came from."""

    cached_tokens: int
    """Those that the prompt cache saved from being computed again."""


class Usage(StrictModel):
    """Tokens counted by the engine, over all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
