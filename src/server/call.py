"""What both API families turn a request into: one frozen call to the generation core."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..engine.protocol import Prompt, Sampling

__all__ = ["GenerationCall"]


@dataclass(frozen=True, slots=True)
class GenerationCall:
    """A validated request. Nothing of the body is needed once it exists."""

    model: str
    """A served name."""
    prompts: tuple[Prompt, ...]
    """Each is one submission; its choices follow those of the prompt before."""
    sampling: Sampling
    n: int
    """Choices per prompt."""
    max_tokens: int
    """0 lets an answer go on to the end of the context window."""
    stop: tuple[str, ...]
    logprobs: bool
    top_logprobs: int
    echo: bool
    stream: bool
    include_usage: bool
    """Whether a stream ends with the usage."""
    tenant: int = 0
    """Whose call it is: those who wait take turns by tenant; 0 is nobody in particular."""
