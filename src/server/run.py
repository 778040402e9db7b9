"""One call while it runs: its submissions to the engine, and what its choices gain.

This is the generation core that the API families are translations around. A
run belongs to the thread that answers the request. Whoever starts one closes
it: closing frees what the engine still holds for it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from ..engine.protocol import Delta, Finish
from ..resilience.errors import EngineFailureError
from .submission import Submission, combined_report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..engine.client import EngineClient
    from ..engine.generation import Generation
    from ..engine.protocol import TokenLogprob
    from ..resilience.reservation import Reservation
    from ..telemetry.content import Content
    from ..telemetry.record import EngineReport
    from .call import GenerationCall

__all__ = ["ClientGoneError", "Ending", "Gain", "Patience", "Run", "TokenUsage", "start_run"]

Ending = Literal["stop", "length"]

_SETTLE_SECONDS = 0.25
"""A decode step of a large model takes a tenth of it; a prefill chunk may take longer."""
_TURN_SECONDS = 0.02
"""How long one of several prompts is waited for before the others are looked at."""


class ClientGoneError(Exception):
    """The client closed its connection: there is nobody to answer. Never leaves this room."""


class Patience(Protocol):
    """Says whether waiting still makes sense."""

    def check(self, *, started: bool) -> None:
        """Raise :class:`ClientGoneError` or a :class:`PharosError` when it does not.

        Args:
            started: Whether the engine has begun with any part of the call.
        """


@dataclass(slots=True)
class Gain:
    """What a choice gained since it was last looked at."""

    choice: int
    """Its index in the answer, over all prompts."""
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    ending: Ending | None = None


@dataclass(slots=True)
class TokenUsage:
    """Token counts of the engine, over all choices that have ended."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0


def start_run(
    run: Run,
    engine: EngineClient,
    call: GenerationCall,
    *,
    begin_seconds: float = 0.0,
    reservation: Reservation | None = None,
) -> None:
    """Submit all prompts of a call and wait until the engine has accepted each.

    Args:
        run: A new one, which the caller has to close; it is closed where this raises.
        engine: Where to submit.
        call: What to generate.
        begin_seconds: How long to wait besides until the engine begins.
        reservation: The place that was kept for it.

    Raises:
        RefusedError: Nothing runs; come back later.
        RequestError: The engine cannot take a prompt.
        GenerationError: The engine died or failed.
        ClientGoneError: Nobody waits any more.
    """
    try:
        generations = engine.submit_all(
            call.prompts,
            call.sampling,
            n=call.n,
            max_tokens=call.max_tokens,
            stop=call.stop,
            logprobs=call.logprobs,
            top_logprobs=call.top_logprobs,
            echo=call.echo,
            tenant=call.tenant,
            reservation=reservation,
        )
        for generation in generations:
            run.add(generation, call.n)
        run.wait_accepted()
        run.wait_started(begin_seconds)
    except BaseException:
        run.close()
        raise


class Run:
    """The submissions of one call, in the order of its prompts."""

    def __init__(self, patience: Patience, poll: float) -> None:
        """Ask ``patience`` at least every ``poll`` seconds."""
        self._patience = patience
        self._poll = poll
        self._submissions: list[Submission] = []
        self._live: list[Submission] = []
        """Those with choices that have not ended."""
        self.choices = 0
        """How many choices the answer has."""
        self.content: Content | None = None
        """Keeps what the choices gain for the span, where the operator opted in."""
        self.on_finished: Callable[[TokenUsage], None] = lambda _: None
        """Told what was used when every choice has ended, before the last of it is handed out."""

    @property
    def finished(self) -> bool:
        """Whether every choice has ended."""
        return not self._live

    @property
    def started(self) -> bool:
        """Whether the engine has begun with any submission."""
        return any(submission.started for submission in self._submissions)

    def add(self, generation: Generation, n: int) -> None:
        """Take over a submission of ``n`` choices."""
        submission = Submission(generation, first_choice=self.choices, choices=n)
        self._submissions.append(submission)
        self._live.append(submission)
        self.choices += n

    def wait_accepted(self) -> None:
        """Wait until the engine has accepted every submission."""
        for submission in self._submissions:
            while not submission.accepted:
                submission.accept(self._poll)
                self._check()

    @property
    def begun(self) -> bool:
        """Whether the engine has begun with any part of the call, though it has told nothing yet."""
        return any(each.started or each.generation.has_begun for each in self._submissions)

    def wait_started(self, seconds: float) -> None:
        """Wait until the engine begins with the first prompt, but no longer than ``seconds``.

        Raises what :meth:`receive` raises: as long as nothing was sent, an error is a status.
        """
        deadline = time.monotonic() + seconds
        while not self.started and (left := deadline - time.monotonic()) > 0:
            self._submissions[0].look(min(left, self._poll))
            self._check()

    def receive(self) -> Sequence[Gain]:
        """Wait for news and return what the choices gained; nothing after ``poll`` seconds.

        Raises:
            GenerationError: The engine died or failed.
            DrainingError: The server's time to finish is over, and nothing was started.
            ShutdownError: It is over, and something was.
            QueueTimeoutError: The call waited too long for its turn.
            DeadlineExceededError: It took too long in all.
            ClientGoneError: Nobody waits any more.
        """
        gains: dict[int, Gain] = {}
        if len(self._live) == 1:
            self._collect(self._live[0], self._poll, gains)
        else:
            waited = 0.0
            while not gains and waited < self._poll:
                for place, submission in enumerate(tuple(self._live)):
                    self._collect(submission, 0.0 if place else _TURN_SECONDS, gains)
                waited += _TURN_SECONDS
        self._check()
        if self.content is not None:
            for gain in gains.values():
                self.content.gain(gain.choice, gain.text, gain.ending)
        return tuple(gains.values())

    def usage(self) -> TokenUsage:
        """Return the counts of what has ended so far."""
        return TokenUsage(
            prompt=sum(submission.prompt_tokens for submission in self._submissions),
            cached=sum(submission.cached_tokens for submission in self._submissions),
            completion=sum(submission.completion_tokens for submission in self._submissions),
        )

    def close(self) -> None:
        """Cancel what has not ended. Safe to call again."""
        for submission in self._submissions:
            submission.generation.close()

    def report(self) -> EngineReport:
        """Return the engine's figures, of what has ended and of what was cut off.

        A request that was just cancelled gets a moment for the engine to say
        how far it was; what is not known by then is taken from what came here.
        """
        deadline = time.monotonic() + _SETTLE_SECONDS
        for submission in self._submissions:
            submission.settle(deadline)
        return combined_report(self._submissions)

    def _check(self) -> None:
        """Ask for patience, unless everything is there already."""
        if self._live:
            self._patience.check(started=self.begun)

    def _collect(self, submission: Submission, timeout: float, gains: dict[int, Gain]) -> None:
        if submission.echo:
            first = submission.first_choice
            for choice in range(first, first + submission.choices):
                gains[choice] = Gain(choice, submission.echo)
            submission.echo = ""
            return
        for event in submission.receive(timeout):
            submission.note(event)
            if isinstance(event, Delta):
                gain = _gain(gains, submission.first_choice + event.choice)
                gain.text += event.text
                gain.logprobs += event.logprobs
            elif isinstance(event, Finish):
                gain = _gain(gains, submission.first_choice + event.choice)
                gain.ending = _ending(event)
                if submission.unfinished == 0:
                    self._live.remove(submission)
                    if not self._live:
                        self.on_finished(self.usage())


def _gain(gains: dict[int, Gain], choice: int) -> Gain:
    gain = gains.get(choice)
    if gain is None:
        gain = gains[choice] = Gain(choice)
    return gain


def _ending(finish: Finish) -> Ending:
    if finish.reason == "cancelled":
        message = "The engine cancelled this request. Send it again."
        raise EngineFailureError(message)
    return finish.reason
