"""The engine as the server uses it: submit a request, receive its events.

Threads: any thread may submit and close; one reader thread, owned by the
client, decodes the engine's messages and hands each event to its request. It
is the only thread that reads the pipe and it never blocks on anything else,
so the two processes cannot wait for each other.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

from ..resilience.admission import Admission
from ..resilience.errors import (
    DrainingError,
    EngineDiedError,
    EngineUnavailableError,
    PharosError,
)
from ..resilience.restarts import RestartPolicy
from . import protocol
from .engine_state import EngineSnapshot, EngineState
from .generation import Generation, failure, rejection
from .protocol import Accepted, Failed, Finish, Loaded, LoadFailed, Rejected, Step
from .supervisor import EngineProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .engine_state import SubmitOptions
    from .protocol import EngineOptions, FromEngine, Prompt, Sampling, ToEngine

__all__ = ["EngineClient", "EngineSnapshot", "EngineState", "start_engine"]

_log = logging.getLogger(__name__)
_LOOKS_PER_SECOND = 3000
"""Of all streams together. Measured on two cores: 32 streams get a quarter more tokens per second
than with a thread woken for each token; one stream alone waits a third of a millisecond."""
_LONGEST_PACE = 0.025
"""Seconds; what a reader does not notice."""


@dataclass(slots=True)
class _InFlight:
    """A request that holds places until the engine has ended it."""

    generation: Generation
    places: int
    tenant: int


def start_engine(
    options: EngineOptions,
    *,
    max_batch: int,
    max_queue: int,
    process: EngineProcess | None = None,
    restarts: RestartPolicy | None = None,
) -> EngineClient:
    """Start the engine and return its client at once, while the model loads.

    Args:
        options: What the engine needs to know.
        max_batch: Sequences that run together at most.
        max_queue: Sequences that wait at most.
        process: A process that was spawned before its options were known, so
            that its imports ran meanwhile; the client owns it from now on.
        restarts: How often a dead engine is started again.
    """
    process = process or EngineProcess()
    process.start(options)
    admission = Admission(max_batch=max_batch, max_queue=max_queue)
    return EngineClient(process, options, admission, restarts or RestartPolicy())


class EngineClient:
    """Owns the engine process, the requests in flight, and the reader thread.

    Lives as long as the server, across restarts of the process; :meth:`close`
    ends it.
    """

    def __init__(
        self,
        process: EngineProcess,
        options: EngineOptions,
        admission: Admission,
        restarts: RestartPolicy,
    ) -> None:
        self._process = process
        self._options = options
        self._admission = admission
        self._restarts = restarts
        self._lock = threading.Lock()
        """Guards ``_in_flight`` and ``_state``; never held across a call out."""
        self._send_lock = threading.Lock()
        """Guards the pipe's writing end, and which process it leads to."""
        self._in_flight: dict[int, _InFlight] = {}
        self._state = EngineState.LOADING
        self._draining = False
        self._settled = threading.Event()
        """Set while waiting makes no sense: the engine is ready, or none will come."""
        self._gone = threading.Event()
        """Set when no engine will come any more."""
        self._ids = itertools.count(1)
        self._last_step: Step | None = None
        self._listener_failed = False
        self.on_step: Callable[[Step], None] = _ignore
        """Told of each step in the reader thread before anybody else; must be quick."""
        self.on_restart: Callable[[str], None] = _ignore
        """Told in the reader thread how the engine ended that is started again."""
        self.on_loaded: Callable[[], None] = _ignore
        """Told in the reader thread that the engine is ready, from now on or already."""
        self.loaded: Loaded | None = None
        self.down_reason = ""
        self.restarts = 0
        """How often a dead engine was started again."""
        self._reader = threading.Thread(target=self._run, name="engine-reader", daemon=True)
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

    def retry_after(self) -> float:
        """Return the seconds after which one who is turned away now should come back."""
        return self._admission.retry_after()

    def wait_ready(self, timeout: float) -> bool:
        """Wait until an engine is ready; False when none will be, or the seconds ran out."""
        self._settled.wait(timeout)
        return self._state is EngineState.READY

    def wait_gone(self, timeout: float | None = None) -> bool:
        """Wait until no engine will come any more: it was closed, or died too often."""
        return self._gone.wait(timeout)

    def snapshot(self) -> EngineSnapshot:
        """Return the figures of the engine's last step."""
        limit = self.loaded.prompt_cache_limit_bytes if self.loaded else 0
        return EngineSnapshot.of(self._last_step, limit)

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
            QueueFullError: Batch and queue have not enough free places for all.
            InvalidRequestError: They are more than the server can ever hold.
        """
        n, tenant = options.get("n", 1), options.get("tenant", 0)
        generations = self._admit(len(prompts), n=n, tenant=tenant)
        for generation, prompt in zip(generations, prompts, strict=True):
            self._send(
                protocol.Submit(
                    id=generation.id,
                    prompt=prompt,
                    sampling=sampling,
                    n=n,
                    max_tokens=options.get("max_tokens", 0),
                    stop=options.get("stop", ()),
                    logprobs=options.get("logprobs", False),
                    top_logprobs=options.get("top_logprobs", 0),
                    submitted_at=time.monotonic(),
                    echo=options.get("echo", False),
                    tenant=tenant,
                )
            )
        return generations

    def _admit(self, requests: int, *, n: int, tenant: int) -> list[Generation]:
        """Take the places of all, and register them before anything is sent.

        So the end of none can be missed, whenever the engine dies.
        """
        self._refuse_unless_ready()
        self._admission.take(requests * n, tenant)
        generations = [
            Generation(next(self._ids), n=n, cancel=self._cancel, pace=self._pace)
            for _ in range(requests)
        ]
        with self._lock:
            if self._state is EngineState.READY:
                self._in_flight |= {made.id: _InFlight(made, n, tenant) for made in generations}
                return generations
        self._admission.release(requests * n, tenant)
        raise self._unavailable()

    def drain(self) -> None:
        """Refuse new work from now on; what runs goes on."""
        self._draining = True

    def close(self) -> None:
        """End the engine; requests still in flight end with :class:`EngineDiedError`."""
        with self._lock:
            self._state = EngineState.STOPPED
        self._set_gone()
        self._process.stop()
        self._reader.join()
        with self._send_lock:
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
        return EngineUnavailableError("The engine is down. Retry later.", retry_after=2.0)

    def _pace(self) -> float:
        """Return the seconds between two looks of one stream: more streams, longer waits."""
        return min(self._admission.taken / _LOOKS_PER_SECOND, _LONGEST_PACE)

    def _cancel(self, request_id: int) -> None:
        self._send(protocol.Cancel(request_id))

    def _send(self, message: ToEngine) -> None:
        """Write one message about a request in flight.

        One that has ended with its engine must not reach the next engine. A
        broken pipe is left to the reader, which sees the same end.
        """
        data = protocol.encode(message)
        with self._send_lock, contextlib.suppress(OSError):
            if message.id in self._in_flight:
                self._process.connection.send_bytes(data)

    def _run(self) -> None:
        """Read from one engine after the other. The reader thread's body."""
        while True:
            self._read()
            ending = self._process.describe_end()
            self._end_all(ending)
            if not self._start_again(ending):
                self._set_gone()
                return

    def _read(self) -> None:
        """Deliver messages until the pipe ends."""
        connection = self._process.connection
        try:
            while True:
                self._dispatch(protocol.decode_from_engine(connection.recv_bytes()))
        except (EOFError, OSError):
            return
        except Exception:  # noqa: BLE001 - a thread's border: every request must be told
            _log.exception("the engine sent a message that cannot be read")

    def _start_again(self, ending: str) -> bool:
        """Start another engine after a while; False where there is to be none."""
        if self.loaded is None:
            return False  # the first load failed: the next would, too
        delay = self._restarts.after_death(time.monotonic())
        if delay is None:
            policy = self._restarts
            self.down_reason += (
                f"; that was more than {policy.limit} times in {policy.window_seconds:g} s"
            )
            return False
        if self._gone.wait(delay):
            return False
        process = EngineProcess()
        with self._lock:
            wanted = self._state is EngineState.DOWN
            if wanted:
                self._state = EngineState.LOADING
        if not wanted:
            process.discard()
            return False
        with self._send_lock:
            self._process.connection.close()
            self._process = process
        if self._gone.is_set():
            process.stop()  # closed meanwhile, when it could only stop the old one
        process.start(self._options)
        self.restarts += 1
        self._tell(lambda: self.on_restart(ending))
        _log.warning("the engine is started again")
        return True

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
                self.down_reason = ""
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
        self._admission.release(places, entry.tenant)

    def _settle(self, state: EngineState) -> None:
        with self._lock:
            if self._state is not EngineState.STOPPED:
                self._state = state
                if state is EngineState.READY:
                    self._settled.set()
                else:
                    self._settled.clear()

    def _set_gone(self) -> None:
        self._gone.set()
        self._settled.set()

    def _end_all(self, ending: str) -> None:
        """Tell every request in flight that the engine is gone. Runs in the reader thread."""
        if self.loaded is not None or not self.down_reason:
            self.down_reason = f"the engine ended: {ending}"
        self._last_step = None
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


def _ignore(*_: object) -> None:
    pass
