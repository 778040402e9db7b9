"""One request in flight: all that is needed to let another engine go on with it.

Everything here is plain state. :class:`.in_flight.InFlight` owns the flights
and guards them; the reader thread alone tells them of events.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from .protocol import Accepted, Finish, PrefillProgress, Started

if TYPE_CHECKING:
    from .generation import Generation
    from .protocol import Delta, RequestEvent, Submit

__all__ = ["Flight", "Stage"]

_PROOF_TOKENS = 3
"""A request that killed its engine after so many tokens does it again before it has as many more:
mlx-lm computes one token ahead of the one that is handed out."""


class Stage(enum.Enum):
    """Where a request is, as far as its present engine has told."""

    HELD = "held"
    """Not sent: the engine is down, or another request is on trial."""
    SENT = "sent"
    """Its prompt is being tokenized."""
    WAITING = "waiting"
    RUNNING = "running"


@dataclass(slots=True, eq=False)
class Flight:
    """A request that holds places until an engine has ended it."""

    submit: Submit
    generation: Generation
    places: int
    """Sequences that have not ended."""
    stage: Stage = Stage.HELD
    sends: int = 0
    """How many engines it was sent to."""
    cancelled: bool = False
    tokens: list[list[int]] = field(default_factory=list)
    """Ids that each choice has generated, and whose text was delivered."""
    ended: set[int] = field(default_factory=set)
    deaths: set[float] = field(default_factory=set)
    """Ends of engines that it is charged with, by their times."""
    suspect: bool = False
    """Whether it was in a death and has not yet shown that it was not the cause."""
    lost: tuple[str, float] = ("", 0.0)
    """How and when its last engine ended."""
    accepted_at: float = 0.0
    first_token_at: list[float] = field(default_factory=list)
    sent_tokens: list[int] = field(default_factory=list)
    """Tokens of each choice when it was sent last."""

    def __post_init__(self) -> None:
        """Make room for the choices."""
        self.tokens = [[] for _ in range(self.submit.n)]
        self.first_token_at = [0.0] * self.submit.n
        self.sent_tokens = [0] * self.submit.n

    @property
    def id(self) -> int:
        """The request's id on the wire, the same for all engines."""
        return self.submit.id

    @property
    def exposed(self) -> bool:
        """Whether the engine worked on it, so that it may be why the engine ended."""
        return self.stage in {Stage.SENT, Stage.RUNNING}

    @property
    def proven(self) -> bool:
        """Whether it went on past the place where the engine before had ended."""
        return self.stage is Stage.RUNNING and all(
            choice in self.ended or len(tokens) >= sent + _PROOF_TOKENS
            for choice, (tokens, sent) in enumerate(zip(self.tokens, self.sent_tokens, strict=True))
        )

    def send(self) -> Submit:
        """Return the message that starts it, or lets it go on, in an engine that is new to it."""
        self.stage = Stage.SENT
        self.sends += 1
        if self.sends == 1:
            return self.submit
        self.sent_tokens = [len(tokens) for tokens in self.tokens]
        return msgspec.structs.replace(
            self.submit,
            resumed=tuple(map(tuple, self.tokens)),
            ended=tuple(sorted(self.ended)),
            echo=self.submit.echo and not self.accepted_at,
        )

    def grow(self, delta: Delta, at: float) -> None:
        """Keep the tokens that a choice gained; ``at`` is when the engine sent them."""
        tokens = self.tokens[delta.choice]
        if not tokens:
            self.first_token_at[delta.choice] = at
            self.generation.first_token_at = self.generation.first_token_at or at
        tokens += delta.tokens

    def take(self, event: RequestEvent) -> RequestEvent | None:
        """Keep what another event brings; return what the request's thread is told, if anything."""
        match event:
            case Finish():
                self.ended.add(event.choice)
                return event if self.sends == 1 else self._with_first_figures(event)
            case Started():
                self.stage = Stage.RUNNING
                self.generation.begun = self.generation.begun or event
                return None
            case Accepted():
                self.stage = Stage.WAITING
                if self.accepted_at:
                    return None
                self.accepted_at = event.at
            case PrefillProgress() if any(self.tokens):
                return None  # its thread has seen the prompt done already
            case _:
                pass
        return event

    def _with_first_figures(self, finish: Finish) -> Finish:
        """Put the figures of the first engine that got so far in place of the last one's."""
        begun = self.generation.begun
        if begun is None:
            return msgspec.structs.replace(finish, accepted_at=self.accepted_at)
        leads = begun.choice == finish.choice
        return msgspec.structs.replace(
            finish,
            accepted_at=self.accepted_at,
            prefill_at=begun.at,
            cached_tokens=begun.cached_tokens if leads else finish.cached_tokens,
            first_token_at=self.first_token_at[finish.choice] or finish.first_token_at,
        )
