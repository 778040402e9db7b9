"""A request and its sequences, as the scheduler keeps them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..protocol import Finish
from .guarded_cache import CacheUse

if TYPE_CHECKING:
    from ..protocol import FinishReason, Submit
    from .text import TextAssembler

__all__ = ["Request", "Sequence"]


@dataclass(slots=True, eq=False)
class Request:
    """One API call: its prompt and the sequences that are not finished."""

    submit: Submit
    tokens: list[int]
    max_tokens: int
    """Of each sequence; at least 1 and within the context window."""
    accepted_at: float
    live: set[Sequence] = field(default_factory=set)
    followers: list[Sequence] = field(default_factory=list)
    """Sequences that wait until the one before them has put the prompt into the cache."""
    cache_use: CacheUse = field(default_factory=CacheUse)

    @property
    def id(self) -> int:
        """The request's id on the wire."""
        return self.submit.id


@dataclass(slots=True, eq=False)
class Sequence:
    """One choice of a request. Owned by the scheduler; hashed by identity."""

    request: Request
    choice: int
    assembler: TextAssembler
    resumed: tuple[int, ...] = ()
    """Tokens of an engine before this one. They are prefilled like the prompt's, and count as
    generated everywhere else."""
    leads: bool = True
    """Whether it looks for the prompt in the cache; others find what it has stored."""
    key: int = -1
    """The runner's key while it runs, else -1."""
    in_cache: int = 0
    """Known tokens whose KV state came from the prompt cache."""
    completion_tokens: int = 0
    prefill_at: float = 0.0
    first_token_at: float = 0.0
    """Of the tokens of this engine."""

    @property
    def known(self) -> list[int]:
        """All tokens before the next one, which is sampled after them."""
        return [*self.request.tokens, *self.resumed]

    def finish(self, reason: FinishReason, *, at: float) -> Finish:
        """Return the message that ends this sequence."""
        request = self.request
        return Finish(
            id=request.id,
            choice=self.choice,
            reason=reason,
            prompt_tokens=len(request.tokens),
            cached_tokens=min(self.in_cache, len(request.tokens)),
            completion_tokens=self.completion_tokens,
            accepted_at=request.accepted_at,
            prefill_at=self.prefill_at or at,
            first_token_at=self.first_token_at,
            finished_at=at,
        )
