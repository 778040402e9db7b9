"""A request and its sequences, as the scheduler keeps them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..protocol import ChatPrompt, Finish
from .guarded_cache import CacheUse
from .text import TextAssembler

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    from ..protocol import FinishReason, Submit
    from .vocabulary import Vocabulary

__all__ = ["Request", "Sequence", "make_sequences"]


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

    retried: bool = False
    """Whether memory ran out under it once and it was begun again."""

    @property
    def id(self) -> int:
        """The request's id on the wire."""
        return self.submit.id

    @property
    def longest(self) -> int:
        """Tokens of prompt and answer of a sequence at most."""
        return len(self.tokens) + self.max_tokens


@dataclass(slots=True, eq=False)
class Sequence:
    """One choice of a request. Owned by the scheduler; hashed by identity."""

    request: Request
    choice: int
    make_assembler: Callable[[], TextAssembler]
    assembler: TextAssembler = field(init=False)
    """Its text since it was started last; what went into it before a step failed is not trusted."""
    resumed: tuple[int, ...] = ()
    """Tokens that were generated before it was started last, by this engine or the one before.
    They are prefilled like the prompt's, and count as generated everywhere else."""
    leads: bool = True
    """Whether it looks for the prompt in the cache; others find what it has stored."""
    key: int = -1
    """The runner's key while it runs, else -1."""
    in_cache: int = 0
    """Known tokens whose KV state came from the prompt cache."""
    cached_tokens: int = 0
    """Those of the prompt, when it was started first."""
    generated: list[int] = field(default_factory=list)
    """Tokens since it was started last."""
    grow_at: int = 0
    """Completion tokens at which its reservation of memory has to grow."""
    completion_tokens: int = 0
    prefill_at: float = 0.0
    first_token_at: float = 0.0
    """Of the tokens of this engine."""

    @property
    def known(self) -> list[int]:
        """All tokens before the next one, which is sampled after them."""
        return [*self.request.tokens, *self.resumed]

    def start(self, in_cache: int, *, at: float) -> None:
        """Note that it leaves the queue, with so many known tokens from the prompt cache."""
        self.assembler = self.make_assembler()
        self.assembler.recall(self.resumed)
        if not self.prefill_at:
            self.prefill_at = at
            self.cached_tokens = min(in_cache, len(self.request.tokens))
        self.in_cache = in_cache

    def take(
        self, token: int, finish: Literal["stop", "length"] | None
    ) -> tuple[str, FinishReason | None]:
        """Take a token from the runner; return the text to send, and why it is the last, if it is.

        Where this fails, the token was not taken.
        """
        text, stopped = "", False
        if finish != "stop":  # the end-of-sequence token has no text
            text, stopped = self.assembler.add(token)
        reason: FinishReason | None = "stop" if stopped else finish
        if reason is not None and not stopped:
            rest, met = self.assembler.finish()
            text += rest
            reason = "stop" if met else reason
        self.completion_tokens += 1
        self.generated.append(token)
        return text, reason

    def give_way(self) -> None:
        """Note that it goes back to the queue, from where it goes on after the tokens it has."""
        self.key = -1
        self.leads = False
        self.resumed = (*self.resumed, *self.generated)
        self.generated = []

    def finish(self, reason: FinishReason, *, at: float) -> Finish:
        """Return the message that ends this sequence."""
        request = self.request
        return Finish(
            id=request.id,
            choice=self.choice,
            reason=reason,
            prompt_tokens=len(request.tokens),
            cached_tokens=self.cached_tokens,
            completion_tokens=self.completion_tokens,
            accepted_at=request.accepted_at,
            prefill_at=self.prefill_at or at,
            first_token_at=self.first_token_at,
            finished_at=at,
        )


def make_sequences(request: Request, vocabulary: Vocabulary) -> list[Sequence]:
    """Return the sequences that are still to run: all, or those that another engine left."""
    submit = request.submit
    strip = isinstance(submit.prompt, ChatPrompt) and vocabulary.strips_first_space

    def assembler() -> TextAssembler:
        return TextAssembler(vocabulary.decoder(), submit.stop, strip_first_space=strip)

    made: list[Sequence] = []
    for choice in range(submit.n):
        if choice in submit.ended:
            continue
        resumed = submit.resumed[choice] if submit.resumed else ()
        sequence = Sequence(request, choice, assembler, resumed, leads=not made)
        sequence.completion_tokens = len(resumed)
        made.append(sequence)
    return made
