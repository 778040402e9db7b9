"""The engine as the server uses it: submit a request, receive its events.

Threads: any thread may submit and close; one reader thread, owned by the
client, decodes the engine's messages and hands each event to its request. It
is the only thread that reads the pipe and it never blocks on anything else,
so the two processes cannot wait for each other.
"""

from __future__ import annotations

import enum
import itertools
import logging
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..resilience.admission import Admission
from ..resilience.errors import (
    DrainingError,
    EngineDiedError,
    EngineUnavailableError,
    PharosError,
)
from . import protocol
from .generation import Generation, failure, rejection
from .protocol import (
    Accepted,
    Failed,
    Finish,
    Loaded,
    LoadFailed,
    Rejected,
    Step,
    StepFigures,
)
from .supervisor import EngineProcess

if TYPE_CHECKING:
    from collections.abc import Callable

    from .protocol import EngineOptions, FromEngine, Prompt, Sampling, ToEngine

__all__ = ["EngineClient", "EngineSnapshot", "EngineState", "start_engine"]

_log = logging.getLogger(__name__)
_LOOKS_PER_SECOND = 3000
"""Of all streams together. Measured on two cores: 32 streams get a quarter more tokens per second
than with a thread woken for each token; one stream alone waits a third of a millisecond."""
_LONGEST_PACE = 0.025
"""Seconds; what a reader does not notice."""


class EngineState(enum.Enum):
    """What the engine can do now."""

    LOADING = "loading"
    READY = "ready"
    DOWN = "down"
    """It ended without being asked to; ``down_reason`` says why."""
    STOPPED = "stopped"
    """The server closed it."""


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """What the engine reported with its last step; zeros before the first."""

    running: int = 0
    waiting: int = 0
    prompt_cache_entries: int = 0
    prompt_cache_bytes: int = 0
    prompt_cache_hits: int = 0
    prompt_cache_misses: int = 0
    prompt_cache_limit_bytes: int = 0
    at: float = 0.0
    """When the step was, monotonic seconds; 0 before the first."""
    figures: StepFigures = field(default_factory=StepFigures)


@dataclass(slots=True)
class _InFlight:
    """A request that holds places until the engine has ended it."""

    generation: Generation
    places: int


def start_engine(
    options: EngineOptions,
    *,
    max_batch: int,
    max_queue: int,
    process: EngineProcess | None = None,
) -> EngineClient:
    """Start the engine and return its client at once, while the model loads.

    Args:
        options: What the engine needs to know.
        max_batch: Sequences that run together at most.
        max_queue: Sequences that wait at most.
        process: A process that was spawned before its options were known, so
            that its imports ran meanwhile; the client owns it from now on.
    """
    process = process or EngineProcess()
    process.start(options)
    return EngineClient(process, Admission(max_batch=max_batch, max_queue=max_queue))


class EngineClient:
    """Owns the engine process, the requests in flight, and the reader thread.

    Lives as long as the server; :meth:`close` ends the process.
    """

    def __init__(self, process: EngineProcess, admission: Admission) -> None:
        self._process = process
        self._admission = admission
        self._lock = threading.Lock()
        """Guards ``_in_flight`` and ``_state``; never held across a call out."""
        self._send_lock = threading.Lock()
        self._in_flight: dict[int, _InFlight] = {}
        self._state = EngineState.LOADING
        self._draining = False
        self._settled = threading.Event()
        """Set when loading has ended, one way or the other."""
        self._ids = itertools.count(1)
        self._last_step: Step | None = None
        self._listener_failed = False
        self.on_step: Callable[[Step], None] = _ignore
        """Told of each step in the reader thread before anybody else; must be quick."""
        self.on_loaded: Callable[[], None] = _nothing
        """Told in the reader thread that the engine is ready, from now on or already."""
        self.loaded: Loaded | None = None
        self.down_reason = ""
        self._reader = threading.Thread(target=self._read, name="engine-reader", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The engine's process id."""
        return self._process.pid

    @property
    def state(self) -> EngineState:
        """What the engine can do now."""
        return self._state

    @property
    def in_flight(self) -> int:
        """Sequences that the engine has not ended yet."""
        return self._admission.taken

    @property
    def draining(self) -> bool:
        """Whether new work is refused because the server shuts down."""
        return self._draining

    def wait_ready(self, timeout: float) -> bool:
        """Wait until the model is loaded; False when it failed or the seconds ran out."""
        self._settled.wait(timeout)
        return self._state is EngineState.READY

    def snapshot(self) -> EngineSnapshot:
        """Return the figures of the engine's last step."""
        step, loaded = self._last_step, self.loaded
        limit = loaded.prompt_cache_limit_bytes if loaded else 0
        if step is None:
            return EngineSnapshot(prompt_cache_limit_bytes=limit)
        return EngineSnapshot(
            running=step.running,
            waiting=step.waiting,
            prompt_cache_entries=step.prompt_cache_entries,
            prompt_cache_bytes=step.prompt_cache_bytes,
            prompt_cache_hits=step.prompt_cache_hits,
            prompt_cache_misses=step.prompt_cache_misses,
            prompt_cache_limit_bytes=limit,
            at=step.at,
            figures=step.figures,
        )

    def submit(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        n: int = 1,
        max_tokens: int = 0,
        stop: tuple[str, ...] = (),
        logprobs: bool = False,
        top_logprobs: int = 0,
        echo: bool = False,
    ) -> Generation:
        """Start a request; its events come through the returned generation.

        Raises:
            DrainingError: The server shuts down.
            EngineUnavailableError: The engine is loading or down.
            QueueFullError: Batch and queue are full.
            InvalidRequestError: ``n`` is more than the server can ever hold.
        """
        self._refuse_unless_ready()
        self._admission.take(n)
        generation = Generation(next(self._ids), n=n, cancel=self._cancel, pace=self._pace)
        with self._lock:
            if self._state is EngineState.READY:
                self._in_flight[generation.id] = _InFlight(generation, n)
            else:
                self._admission.release(n)
                raise self._unavailable()
        self._send(
            protocol.Submit(
                id=generation.id,
                prompt=prompt,
                sampling=sampling,
                n=n,
                max_tokens=max_tokens,
                stop=stop,
                logprobs=logprobs,
                top_logprobs=top_logprobs,
                submitted_at=time.monotonic(),
                echo=echo,
            )
        )
        return generation

    def drain(self) -> None:
        """Refuse new work from now on; what runs goes on."""
        self._draining = True

    def close(self) -> None:
        """End the engine; requests still in flight end with :class:`EngineDiedError`."""
        with self._lock:
            self._state = EngineState.STOPPED
        self._process.stop()
        self._reader.join()
        self._process.connection.close()

    def _refuse_unless_ready(self) -> None:
        if self._draining:
            message = "The server is shutting down. Retry against another instance, or later."
            raise DrainingError(message, retry_after=5.0)
        if self._state is not EngineState.READY:
            raise self._unavailable()

    def _unavailable(self) -> EngineUnavailableError:
        if self._state is EngineState.LOADING:
            return EngineUnavailableError("The model is still loading. Retry in a moment.")
        return EngineUnavailableError("The engine is down. Retry later.", retry_after=5.0)

    def _pace(self) -> float:
        """Return the seconds between two looks of one stream: more streams, longer waits."""
        return min(self._admission.taken / _LOOKS_PER_SECOND, _LONGEST_PACE)

    def _cancel(self, request_id: int) -> None:
        with self._lock:
            known = request_id in self._in_flight
        if known:
            self._send(protocol.Cancel(request_id))

    def _send(self, message: ToEngine) -> None:
        """Write one message. A broken pipe is left to the reader, which sees the same end."""
        data = protocol.encode(message)
        try:
            with self._send_lock:
                self._process.connection.send_bytes(data)
        except OSError:
            _log.debug("the engine's pipe is closed")

    def _read(self) -> None:
        """Deliver messages until the pipe ends, then end every request in flight."""
        connection = self._process.connection
        try:
            while True:
                self._dispatch(protocol.decode_from_engine(connection.recv_bytes()))
        except (EOFError, OSError):
            pass
        except Exception:  # noqa: BLE001 - a thread's border: every request must be told
            _log.exception("the engine sent a message that cannot be read")
        self._end_all(self._process.describe_end())

    def _dispatch(self, message: FromEngine) -> None:
        match message:
            case Step():
                self._last_step = message
                self._tell(lambda: self.on_step(message))
                for event in message.events:
                    self._deliver(event)
            case Accepted() | Rejected() | Failed():
                self._deliver(message)
            case Loaded():
                self.loaded = message
                self._tell(self.on_loaded)
                self._settle(EngineState.READY)
            case LoadFailed():
                self.down_reason = message.reason

    def _tell(self, listener: Callable[[], None]) -> None:
        """Call a listener. Whatever it raises, the requests go on, and the log says so once."""
        try:
            listener()
        except Exception:  # noqa: BLE001 - the border to code of other rooms
            if not self._listener_failed:
                _log.exception("a listener of the engine failed; its figures are incomplete")
            self._listener_failed = True

    def _deliver(self, event: protocol.RequestEvent) -> None:
        entry = self._in_flight.get(event.id)
        if entry is None:
            return
        match event:
            case Finish():
                entry.generation.deliver(event)
                self._release(event.id, entry, 1)
            case Rejected():
                entry.generation.deliver(rejection(event))
                self._release(event.id, entry, entry.places)
            case Failed():
                _log.error("request %d failed in the engine: %s", event.id, event.reason)
                entry.generation.deliver(failure(event))
                self._release(event.id, entry, entry.places)
            case _:
                entry.generation.deliver(event)

    def _release(self, request_id: int, entry: _InFlight, places: int) -> None:
        """Give back places that the engine has freed; forget the request with its last one."""
        entry.places -= places
        if entry.places == 0:
            with self._lock:
                self._in_flight.pop(request_id, None)
        self._admission.release(places)

    def _settle(self, state: EngineState) -> None:
        with self._lock:
            if self._state is not EngineState.STOPPED:
                self._state = state
        self._settled.set()

    def _end_all(self, ending: str) -> None:
        """Tell every request in flight that the engine is gone. Runs in the reader thread."""
        self.down_reason = self.down_reason or f"the engine ended: {ending}"
        self._settle(EngineState.DOWN)
        with self._lock:
            orphans = list(self._in_flight.items())
        if self._state is EngineState.DOWN:
            _log.error("%s; %d requests end with it", self.down_reason, len(orphans))
        for request_id, entry in orphans:
            entry.generation.deliver(self._died())
            self._release(request_id, entry, entry.places)

    def _died(self) -> PharosError:
        if self._state is EngineState.STOPPED:
            return EngineDiedError("The server is shutting down and ended this request.")
        return EngineDiedError("The engine died while this request ran. Try again.")


def _ignore(_: Step) -> None:
    pass


def _nothing() -> None:
    pass
