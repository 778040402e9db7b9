"""One prompt in the engine: its events, and the figures that they bring."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..engine.generation import Resumed
from ..engine.protocol import Accepted, Delta, Finish, PrefillProgress
from ..resilience.errors import PharosError
from ..telemetry.record import EngineReport, Resumption
from .policy_observation import restart_reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..engine.generation import Generation
    from ..engine.protocol import RequestEvent, Started

__all__ = ["Submission", "combined_report"]


@dataclass(slots=True)
class Submission:
    """One prompt in the engine. Belongs to the thread that answers the request."""

    generation: Generation
    first_choice: int
    choices: int
    prompt_tokens: int = 0
    processed_tokens: int = 0
    """Prompt tokens in the KV cache, as the engine last said."""
    received_tokens: int = 0
    """Generated tokens of choices that have not ended."""
    accepted_at: float = 0.0
    """The engine's clock; 0 before."""
    finishes: dict[int, Finish] = field(default_factory=dict)
    """Of the choices that have ended."""
    echo: str = ""
    """The prompt's text, where asked for: the first thing that each choice gains."""
    resumptions: list[Resumption] = field(default_factory=list)
    backlog: list[RequestEvent | Resumed] = field(default_factory=list)
    """Events that came together with the acceptance."""

    @property
    def accepted(self) -> bool:
        """Whether the engine has taken the prompt."""
        return self.accepted_at > 0

    @property
    def started(self) -> bool:
        """Whether the engine has begun with it: it tells of every piece of the prompt."""
        if self.processed_tokens or self.received_tokens or self.finishes:
            return True
        return any(not isinstance(event, Resumed) for event in self.backlog)

    def look(self, timeout: float) -> None:
        """Wait for events, and keep them for :meth:`receive`."""
        self.backlog += self.generation.receive(timeout)

    def receive(self, timeout: float) -> list[RequestEvent | Resumed]:
        """Return the events that wait."""
        if self.backlog:
            events, self.backlog = self.backlog, []
            return events
        return self.generation.receive(timeout)

    @property
    def unfinished(self) -> int:
        """Choices that have not ended."""
        return self.choices - len(self.finishes)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens of the first choice that came from the prompt cache; known once it begins.

        The others read what that one has just stored.
        """
        return self._begun.cached_tokens if self._begun else 0

    @property
    def prefill_at(self) -> float:
        """When the first choice left the queue, by the engine's clock; 0 before."""
        return self._begun.at if self._begun else 0.0

    @property
    def _begun(self) -> Started | None:
        """Its beginning, which the reader thread may know before anybody here has heard of it."""
        return self.generation.begun if self.accepted else None

    @property
    def first_token_at(self) -> float:
        """When the first token that came here was made, by the engine's clock; 0 before."""
        exact = [each.first_token_at for each in self.finishes.values()]
        return _first([*exact, self.generation.first_token_at if self.received_tokens else 0.0])

    @property
    def completion_tokens(self) -> int:
        """Generated tokens of the choices that have ended."""
        return sum(finish.completion_tokens for finish in self.finishes.values())

    def note(self, event: RequestEvent | Resumed) -> None:
        """Keep the figures of an event."""
        match event:
            case Delta():
                self.received_tokens += len(event.tokens)
            case Accepted():
                self.accepted_at = event.at
                self.prompt_tokens = event.prompt_tokens
                self.echo = event.echo
            case PrefillProgress():
                self.processed_tokens = max(self.processed_tokens, event.processed)
            case Finish():
                self.finishes[event.choice] = event
            case Resumed():
                self.resumptions.append(
                    Resumption(
                        reason=restart_reason(event.ending),
                        lost_at=event.lost_at,
                        resumed_at=event.at,
                    )
                )
            case _:
                pass

    def settle(self, deadline: float) -> None:
        """Note what has come, and what the engine still says of a cancelled request, but not for long.

        Args:
            deadline: Monotonic seconds. If it has passed, what is there counts all the same.
        """
        more = True
        with contextlib.suppress(PharosError):
            while more and (self.backlog or not self.generation.ended):
                left = max(0.0, deadline - time.monotonic())
                more = left > 0 or bool(self.backlog)
                for event in self.receive(left):
                    self.note(event)

    def accept(self, timeout: float) -> None:
        """Look for the acceptance; raises what the engine has against the request."""
        for event in self.generation.receive(timeout):
            if isinstance(event, Accepted):
                self.note(event)
            else:
                self.backlog.append(event)


def combined_report(submissions: Sequence[Submission]) -> EngineReport:
    """Return the figures of all submissions of a call.

    Where the engine did not say how a choice ended, because it died or failed or is
    still busy with a step, the figures are those of what it had said before, and there is
    no time of the end.
    """
    finishes = [finish for each in submissions for _, finish in sorted(each.finishes.items())]
    unfinished = any(each.unfinished for each in submissions)
    ends = [] if unfinished else [each.finished_at for each in finishes]
    decoded = [each for each in finishes if each.completion_tokens > 1 and each.first_token_at]
    return EngineReport(
        endings=tuple(finish.reason for finish in finishes),
        prompt_tokens=sum(map(_worked_through, submissions)),
        cached_tokens=sum(each.cached_tokens for each in submissions),
        completion_tokens=sum(map(_generated, submissions)),
        longest_completion=max((each.completion_tokens for each in finishes), default=0),
        accepted_at=_first(each.accepted_at for each in submissions),
        prefill_at=_first(each.prefill_at for each in submissions),
        first_token_at=_first(each.first_token_at for each in submissions),
        finished_at=max(ends, default=0.0),
        decode_seconds=sum(each.finished_at - each.first_token_at for each in decoded),
        decode_intervals=sum(each.completion_tokens - 1 for each in decoded),
        resumptions=tuple(each for submission in submissions for each in submission.resumptions),
    )


def _worked_through(submission: Submission) -> int:
    """Return the prompt tokens that were computed or came from the cache."""
    if submission.received_tokens or any(
        each.completion_tokens for each in submission.finishes.values()
    ):
        return submission.prompt_tokens
    return max(submission.processed_tokens, submission.cached_tokens)


def _generated(submission: Submission) -> int:
    if submission.unfinished:
        return max(submission.received_tokens, submission.completion_tokens)
    return submission.completion_tokens


def _first(times: Iterable[float]) -> float:
    return min((time for time in times if time), default=0.0)
