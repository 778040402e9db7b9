"""The engine as the server uses it: submit a request, receive its events.

Threads: any thread may submit and close. The reader thread of the supervision
hands each event to its request; it never blocks on anything but the pipe's
reading end, so the two processes cannot wait for each other.

When an engine dies, its requests are held and go on in the next one. Whoever
waits for their events notices a pause, and nothing else.
"""

from __future__ import annotations

import itertools
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Unpack

from msgspec import msgpack

from ..resilience.admission import Admission
from ..resilience.convictions import Convictions
from ..resilience.errors import DrainingError, EngineDiedError, PharosError
from ..resilience.restarts import RestartPolicy
from . import protocol
from .engine_state import Endurance, EngineSnapshot, EngineState
from .flight import Flight
from .generation import Generation, Resumed, failure, phase_of, rejection
from .in_flight import InFlight
from .protocol import Accepted, Delta, Failed, Finish, Rejected, Started, Step
from .supervision import Supervision
from .supervisor import EngineProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from ..resilience.reservation import Reservation
    from .engine_state import SubmitOptions
    from .protocol import EngineOptions, FromEngine, Loaded, Prompt, Sampling

__all__ = ["EngineClient", "EngineSnapshot", "EngineState", "start_engine"]

_log = logging.getLogger(__name__)
_LOOKS_PER_SECOND = 1300
"""Of all streams together. Measured on two cores with 32 streams: more take tokens from the streams and
milliseconds from all other requests, fewer bring neither; one alone waits less than a millisecond."""
_LONGEST_PACE = 0.025
"""Seconds; what a reader does not notice."""


def start_engine(
    options: EngineOptions,
    *,
    max_batch: int,
    max_queue: int,
    process: EngineProcess | None = None,
    restarts: RestartPolicy | None = None,
    endurance: Endurance | None = None,
) -> EngineClient:
    """Start the engine and return its client at once, while the model loads.

    Args:
        options: What the engine needs to know.
        max_batch: Sequences that run together at most.
        max_queue: Sequences that wait at most.
        process: A process that was spawned before its options were known, so
            that its imports ran meanwhile; the client owns it from now on.
        restarts: How often a dead engine is started again.
        endurance: How long a silent engine is believed, and how many deaths a
            request survives.
    """
    process = process or EngineProcess()
    process.start(options)
    admission = Admission(max_batch=max_batch, max_queue=max_queue)
    return EngineClient(
        process, options, admission, restarts or RestartPolicy(), endurance or Endurance()
    )


class EngineClient:
    """Owns the requests in flight and the engine's supervision.

    Lives as long as the server, across restarts of the process; :meth:`close`
    ends it.
    """

    def __init__(
        self,
        process: EngineProcess,
        options: EngineOptions,
        admission: Admission,
        restarts: RestartPolicy,
        endurance: Endurance,
    ) -> None:
        self._admission = admission
        self._in_flight = InFlight(crash_budget=endurance.crash_budget)
        self._convictions = Convictions()
        self._draining = False
        self._ids = itertools.count(1)
        self._calls = itertools.count()
        self._last_report: Step | Loaded | None = None
        self._listener_failed = False
        self.on_step: Callable[[Step], None] = _ignore
        """Told of each step in the reader thread before anybody else; must be quick."""
        self.on_restart: Callable[[str], None] = _ignore
        """Told in the reader thread how the engine ended that is started again."""
        self.on_resume: Callable[[str], None] = _ignore
        """Told how the engine ended for each request that goes on in another; any thread."""
        self.on_lost: Callable[[int, int], None] = _ignore
        """Told the id and the choices of a request that ended without its engine; any thread."""
        self.on_loaded: Callable[[], None] = _ignore
        """Told in the reader thread that the engine is ready, from now on or already."""
        self._supervision = Supervision(process, options, restarts, endurance, self)
        self._supervision.on_restart = lambda ending: self._tell(partial(self.on_restart, ending))
        self._supervision.start()

    @property
    def pid(self) -> int:
        """The engine's process id."""
        return self._supervision.pid

    @property
    def state(self) -> EngineState:
        """What the engine can do now."""
        return self._supervision.state

    @property
    def loaded(self) -> Loaded | None:
        """What the engine said when it was ready last; None before the first time."""
        return self._supervision.loaded

    @property
    def down_reason(self) -> str:
        """Why the engine is down, for the operator; empty while it is not."""
        return self._supervision.down_reason

    @property
    def restarts(self) -> int:
        """How often a dead engine was started again."""
        return self._supervision.restarts

    @property
    def last_ending(self) -> str:
        """How the last dead engine ended: see :meth:`EngineProcess.describe_end`; empty without one."""
        return self._supervision.last_ending

    @property
    def silent_seconds(self) -> float:
        """Since when an engine that has work has made no progress; 0 without work."""
        if not self._admission.taken:
            return 0.0
        last = max(self._supervision.progress_at, self._in_flight.busy_since)
        return time.monotonic() - last

    @property
    def in_flight(self) -> int:
        """Sequences that the engine has not ended yet."""
        return self._admission.taken

    def retry_after(self) -> float:
        """Return the seconds after which one who is turned away now should come back."""
        return self._admission.retry_after()

    def wait_ready(self, timeout: float) -> bool:
        """Wait until an engine is ready; False when none will be, or the seconds ran out."""
        return self._supervision.wait_ready(timeout)

    def wait_gone(self, timeout: float | None = None) -> bool:
        """Wait until no engine will come any more: it was closed, or died too often."""
        return self._supervision.wait_gone(timeout)

    def snapshot(self) -> EngineSnapshot:
        """Return what the engine told last, and who waits for it."""
        return EngineSnapshot.of(self._last_report, self.loaded, self.in_flight)

    def submit(
        self, prompt: Prompt, sampling: Sampling, **options: Unpack[SubmitOptions]
    ) -> Generation:
        """Start one request; see :meth:`submit_all`."""
        (generation,) = self.submit_all((prompt,), sampling, **options)
        return generation

    def submit_all(
        self, prompts: Sequence[Prompt], sampling: Sampling, **options: Unpack[SubmitOptions]
    ) -> list[Generation]:
        """Start a request per prompt, all or none; their events come through the generations.

        Raises:
            DrainingError: The server shuts down.
            EngineUnavailableError: The engine is loading or down.
            EngineDiedError: A prompt has just ended engine after engine.
            QueueFullError: Batch and queue have not enough free places for all.
            InvalidRequestError: They are more than the server can ever hold.
        """
        self._refuse_unless_ready()
        for prompt in prompts if self._convictions else ():
            self._convictions.check(msgpack.encode(prompt), time.monotonic())
        places, tenant = len(prompts) * options.get("n", 1), options.get("tenant", 0)
        self._admission.take(places, tenant, options.get("reservation"))
        phase = phase_of(next(self._calls))  # one for all, which one thread looks at in turn
        flights = [self._flight(prompt, sampling, options, phase) for prompt in prompts]
        if not self._in_flight.add(flights):
            self._admission.release(places, tenant)
            raise self._supervision.unavailable()
        self._send()
        return [flight.generation for flight in flights]

    def reserve(self, tenant: int) -> Reservation | None:
        """Keep a place for a request that has been read; None where there is none.

        Safe from any thread, and waits for nothing.
        """
        return self._admission.reserve(tenant)

    def refusal(self, tenant: int) -> PharosError:
        """Return what one without a place is refused with. The next one is told to come later."""
        try:
            self._refuse_unless_ready()
        except PharosError as error:
            return error
        return self._admission.refusal(tenant)

    def drain(self) -> None:
        """Refuse new work from now on; what runs goes on."""
        self._draining = True

    def close(self) -> None:
        """End the engine; requests still in flight end with :class:`EngineDiedError`."""
        self._supervision.close()

    # -- what the supervision asks and tells ----------------------------------

    def take(self, message: FromEngine) -> None:
        """Hand the events of a message to their requests."""
        if isinstance(message, Step):
            self._last_report = message
            self._tell(lambda: self.on_step(message))
            for event in message.events:
                if type(event) is Delta:
                    self._grow(event, message.at)
                else:
                    self._deliver(event)
        elif isinstance(message, Accepted | Rejected | Started | Failed):
            self._deliver(message)

    def lose_engine(self, ending: str, at: float) -> Collection[float]:
        """Hold the requests for the next engine, and end those that were in too many deaths."""
        self._last_report = None
        verdict = self._in_flight.interrupt(ending, at)
        if self.state is not EngineState.STOPPED:
            _log.error(
                "the engine ended: %s; %d requests wait for the next one, %d end",
                ending,
                verdict.kept,
                len(verdict.convicted),
            )
        for flight in verdict.convicted:
            deaths = len(flight.deaths)
            error = EngineDiedError(f"The engine died {deaths} times on this request.")
            if verdict.pardoned:  # it was alone, so it was the cause
                prompt = msgpack.encode(flight.submit.prompt)
                error = self._convictions.convict(prompt, at, deaths=deaths)
            self._end(flight, error)
        for flight in verdict.left:
            self._end(flight, _cancelled())
        return verdict.pardoned

    def gain_engine(self, loaded: Loaded) -> None:
        """Let the requests go on."""
        self._last_report = loaded
        self._tell(self.on_loaded)
        self._in_flight.open()
        self._send()

    def give_up(self) -> None:
        """End all requests that are left."""
        message = "The engine died while this request ran, and is not started again."
        if self.state is EngineState.STOPPED:
            message = "The server is shutting down and ended this request."
        for flight in self._in_flight.shut():
            self._end(flight, EngineDiedError(message))

    def has_work(self) -> bool:
        """Whether any request was sent and has not ended."""
        return self._in_flight.pending

    def exchange(self, change: Callable[[], None]) -> None:
        """Call ``change`` while nobody sends requests to the engine."""
        with self._in_flight.writing():
            change()

    # -------------------------------------------------------------------------

    def _flight(
        self, prompt: Prompt, sampling: Sampling, options: SubmitOptions, phase: float
    ) -> Flight:
        n = options.get("n", 1)
        submit = protocol.Submit(
            id=next(self._ids),
            prompt=prompt,
            sampling=sampling,
            n=n,
            max_tokens=options.get("max_tokens", 0),
            stop=options.get("stop", ()),
            logprobs=options.get("logprobs", False),
            top_logprobs=options.get("top_logprobs", 0),
            submitted_at=time.monotonic(),
            echo=options.get("echo", False),
            tenant=options.get("tenant", 0),
        )
        generation = Generation(submit.id, n=n, cancel=self._cancel, pace=self._pace, phase=phase)
        return Flight(submit, generation, places=n)

    def _refuse_unless_ready(self) -> None:
        if self._draining:
            message = "The server is shutting down. Retry against another instance, or later."
            raise DrainingError(message)
        if self.state is not EngineState.READY:
            raise self._supervision.unavailable()

    def _pace(self) -> float:
        """Return the seconds in which a stream is looked at once: more streams, longer waits."""
        return min(self._admission.taken / _LOOKS_PER_SECOND, _LONGEST_PACE)

    def _cancel(self, request_id: int) -> None:
        """Cancel a request; one that no engine has gives its places back at once."""
        flight = self._in_flight.cancel(
            request_id, self._supervision.write, protocol.Cancel(request_id)
        )
        if flight is not None:
            self._end(flight, _cancelled())

    def _send(self) -> None:
        """Send what may be sent now, and tell those that go on from another engine."""
        for flight in self._in_flight.send(self._supervision.write):
            ending, lost_at = flight.lost
            flight.generation.deliver(Resumed(ending, lost_at, time.monotonic()))
            self._tell(partial(self.on_resume, ending))

    def _tell(self, listener: Callable[[], None]) -> None:
        """Call a listener. Whatever it raises, the requests go on, and the log says so once."""
        try:
            listener()
        except Exception:  # noqa: BLE001 - the border to code of other rooms
            if not self._listener_failed:
                _log.exception("a listener of the engine failed; its figures are incomplete")
            self._listener_failed = True

    def _grow(self, delta: Delta, at: float) -> None:
        """Keep and hand on what a choice gained: the way of every token, so nothing else is here."""
        flight = self._in_flight.get(delta.id)
        if flight is not None:
            flight.grow(delta, at)
            flight.generation.deliver(delta)
            if flight.suspect and self._in_flight.acquit(flight):
                self._send()

    def _deliver(self, event: protocol.RequestEvent) -> None:
        flight = self._in_flight.get(event.id)
        if flight is None:
            return
        told = flight.take(event)
        match told:
            case None:
                return
            case Finish():
                flight.generation.deliver(told)
                self._release(flight, 1)
            case Rejected():
                flight.generation.deliver(rejection(told))
                self._release(flight, flight.places)
            case Failed():
                _log.error("request %d failed in the engine: %s", told.id, told.reason)
                flight.generation.deliver(failure(told))
                self._release(flight, flight.places)
            case _:
                flight.generation.deliver(told)
        if self._in_flight.due:
            self._send()

    def _release(self, flight: Flight, places: int) -> None:
        """Give back places that the engine has freed; forget the request with its last one."""
        flight.places -= places
        if flight.places == 0:
            self._in_flight.remove(flight)
        self._admission.release(places, flight.submit.tenant)

    def _end(self, flight: Flight, error: PharosError) -> None:
        """End a request that has been forgotten already."""
        flight.generation.deliver(error)
        self._admission.release(flight.places, flight.submit.tenant)
        self._tell(partial(self.on_lost, flight.id, flight.submit.n))


def _cancelled() -> PharosError:
    return EngineDiedError("The engine ended after this request had been cancelled.")


def _ignore(*_: object) -> None:
    pass
