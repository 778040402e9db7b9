"""Keeps an engine alive: reads what it says, sees it die or hang, starts the next one.

Two threads belong to it. The reader decodes the engine's messages and is the
only one that reads the pipe; after an engine's end it judges, waits and starts
another. The watch looks whether an engine that has work makes progress, and
kills one that does not: for the reader that is a death like any other.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Protocol

import msgspec

from ..resilience.caution import Caution
from ..resilience.errors import EngineUnavailableError
from ..resilience.hang import HangDetector, Health
from ..resilience.load_limit import LoadLimit
from . import protocol
from .engine_state import EngineState
from .protocol import Alive, Loaded, LoadFailed, Ping, Started, Step
from .supervisor import EXIT_SECONDS, EngineProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ..resilience.restarts import RestartPolicy
    from .engine_state import Endurance
    from .protocol import EngineOptions, FromEngine, ToEngine

__all__ = ["Supervision", "Ward"]

_log = logging.getLogger(__name__)

_SPAWN_SECONDS = 1.0
"""Between two attempts to start a process where the system has no file, memory or thread for it."""
_SILENT_SECONDS = 1.0
"""An engine that is at work and has said nothing for so long will not hear that it is to end."""
_SILENT_PATIENCE = 0.5


class Ward(Protocol):
    """What the engine is kept alive for. All but ``has_work`` is called in the reader thread."""

    def take(self, message: FromEngine) -> None:
        """Take a message about requests."""

    def lose_engine(self, ending: str, at: float) -> Collection[float]:
        """Learn that the engine ended; return deaths that must not count, by their times."""

    def gain_engine(self, loaded: Loaded) -> None:
        """Learn that an engine is ready for requests."""

    def give_up(self) -> None:
        """Learn that no engine will come any more."""

    def has_work(self) -> bool:
        """Say whether the engine could make progress with anything."""

    def exchange(self, change: Callable[[], None]) -> None:
        """Call ``change`` while nobody sends requests to the engine."""


class Supervision:
    """Owns the engine's process, its state, and the two threads, for the life of the server."""

    def __init__(
        self,
        process: EngineProcess,
        options: EngineOptions,
        restarts: RestartPolicy,
        endurance: Endurance,
        ward: Ward,
    ) -> None:
        self._process = process
        self._options = options
        self._restarts = restarts
        self._caution = Caution()
        self._ward = ward
        self._lock = threading.Lock()
        """Guards ``state``; never held across a call out."""
        self.state = EngineState.LOADING
        self.loaded: Loaded | None = None
        self.down_reason = ""
        self.last_ending = ""
        """How the engine before this one ended: see :meth:`EngineProcess.describe_end`."""
        self.restarts = 0
        self.on_restart: Callable[[str], None] = lambda _: None
        self._settled = threading.Event()
        """Set while waiting makes no sense: the engine is ready, or none will come."""
        self._gone = threading.Event()
        """Set when no engine will come any more."""
        self._progress = 0
        """Messages of the MLX thread. No other thread's count: they go on when it hangs."""
        self.progress_at = time.monotonic()
        """When the last of them came."""
        self._hang = HangDetector(endurance.hang_seconds)
        self._load_limit = LoadLimit(
            endurance.load_seconds,
            least_seconds=max(endurance.hang_seconds, endurance.reload_seconds),
            margin=endurance.reload_margin,
        )
        self._load = HangDetector(self._load_limit.seconds)
        """Of the load that runs, or that ran last: each has its own limit."""
        self._load_began = time.monotonic()
        self._reader = threading.Thread(target=self._run, name="engine-reader", daemon=True)
        self._watch = threading.Thread(target=self._look, name="engine-watch", daemon=True)

    def start(self) -> None:
        """Start the threads."""
        self._reader.start()
        self._watch.start()

    @property
    def pid(self) -> int:
        """The engine's process id."""
        return self._process.pid

    @property
    def gone(self) -> bool:
        """Whether no engine will come any more."""
        return self._gone.is_set()

    def write(self, message: ToEngine) -> None:
        """Write to the engine; returns at once. A broken pipe is the reader's to notice."""
        self._process.write(message)

    def wait_ready(self, timeout: float) -> bool:
        """Wait until an engine is ready; False when none will be, or the seconds ran out."""
        self._settled.wait(timeout)
        return self.state is EngineState.READY

    def wait_gone(self, timeout: float | None) -> bool:
        """Wait until no engine will come any more."""
        return self._gone.wait(timeout)

    def unavailable(self) -> EngineUnavailableError:
        """Return what a request is told while the engine is not ready."""
        if self.gone and self.loaded:
            message = "The engine died too often and is not started again. The server needs a look."
            return EngineUnavailableError(message, retry_after=30.0)
        if self.loaded is None:
            return EngineUnavailableError("The model is still loading. Retry in a moment.")
        message = "The engine ended and is started again. Retry in a moment."
        return EngineUnavailableError(message, retry_after=2.0)

    def close(self) -> None:
        """End the engine and the threads."""
        with self._lock:
            self.state = EngineState.STOPPED
        self._set_gone()
        silent = self._ward.has_work() and time.monotonic() - self.progress_at > _SILENT_SECONDS
        self._process.stop(patience=_SILENT_PATIENCE if silent else EXIT_SECONDS)
        self._reader.join()
        self._watch.join()
        self._process.close()

    # -- the reader thread ----------------------------------------------------

    def _run(self) -> None:
        """Read from one engine after the other."""
        try:
            while True:
                self._read()
                ending = self._process.describe_end()
                if not self._start_again(ending, self._lose(ending)):
                    return
        finally:  # whatever happened: nobody else ends the requests
            self._settle(EngineState.DOWN)
            try:
                self._ward.give_up()
            finally:
                self._set_gone()

    def _read(self) -> None:
        """Pass messages on until the pipe ends."""
        connection = self._process.connection
        try:
            while True:
                self._dispatch(protocol.decode_from_engine(connection.recv_bytes()))
        except (EOFError, OSError):
            return
        except Exception:  # noqa: BLE001 - a thread's border: every request must be told
            _log.exception("the engine sent a message that cannot be read")

    def _dispatch(self, message: FromEngine) -> None:
        match message:
            case Step() | Started():
                self._progress += 1
                self.progress_at = time.monotonic()
                self._ward.take(message)
            case Alive():
                self._progress += 1
            case Loaded():
                self._load_limit.loaded(time.monotonic() - self._load_began)
                self.loaded = message
                self.down_reason = ""
                self._caution.started(time.monotonic())
                self._ward.gain_engine(message)
                self._settle(EngineState.READY)
            case LoadFailed():
                self.down_reason = message.reason
            case _:
                self._ward.take(message)

    def _lose(self, ending: str) -> float | None:
        """Tell of an engine's end; return the seconds until the next start, None for never."""
        at = time.monotonic()
        self.last_ending = ending
        if ending == "hang" and self.state is EngineState.LOADING:
            self._load_limit.overran()
        if self.loaded is not None or not self.down_reason:
            self.down_reason = f"the engine ended: {ending}"
        self._settle(EngineState.DOWN)
        pardoned = self._ward.lose_engine(ending, at)
        self._caution.died(ending, at, explained=at in pardoned)
        if self.loaded is None:
            return None  # the first load failed: the next would, too
        delay = self._restarts.after_death(at, pardoned)
        if delay is None:
            policy = self._restarts
            self.down_reason += (
                f"; that was more than {policy.limit} times in {policy.window_seconds:g} s"
            )
        return delay

    def _start_again(self, ending: str, delay: float | None) -> bool:
        """Start another engine after a while; False where there is to be none."""
        if delay is None or self._gone.wait(delay):
            return False
        process = self._spawned()
        if process is None:
            return False
        self._load = HangDetector(self._load_limit.seconds)
        self._load_began = time.monotonic()
        with self._lock:
            wanted = self.state is EngineState.DOWN
            if wanted:
                self.state = EngineState.LOADING
        if not wanted:
            process.discard()
            return False
        process.start(self._smaller())

        def exchange() -> None:
            self._process.close()
            self._process = process

        self._ward.exchange(exchange)
        if self._gone.is_set():
            process.stop()  # closed meanwhile, when it could only stop the old one
        self.restarts += 1
        self.on_restart(ending)
        _log.warning("the engine is started again")
        return True

    def _spawned(self) -> EngineProcess | None:
        """Return a process; None when the server ends before the system has room for one."""
        reason = self.down_reason
        told = False
        while True:
            try:
                process = EngineProcess()
            except (OSError, RuntimeError, MemoryError) as error:
                kind = type(error).__name__
                if not told:
                    _log.exception(
                        "the engine cannot be started again yet; it is tried each second"
                    )
                self.down_reason, told = f"{reason}; no other can be started yet ({kind})", True
                if self._gone.wait(_SPAWN_SECONDS):
                    return None
            else:
                return process

    def _smaller(self) -> EngineOptions:
        """Return what the next engine is told: less at once, if too much may be why this one died."""
        halvings = self._caution.halvings
        if halvings:
            _log.warning("the engine starts with 1/%d of its limits and grows back", 1 << halvings)
        return msgspec.structs.replace(self._options, halvings=halvings)

    def _settle(self, state: EngineState) -> None:
        with self._lock:
            if self.state is not EngineState.STOPPED:
                self.state = state
                if state is EngineState.READY:
                    self._settled.set()
                else:
                    self._settled.clear()

    def _set_gone(self) -> None:
        self._gone.set()
        self._settled.set()

    # -- the watch thread -----------------------------------------------------

    def _look(self) -> None:
        """Look again and again whether the engine makes progress."""
        while not self._gone.wait(min(self._hang.interval_seconds, self._load.interval_seconds)):
            self._look_once()

    def _look_once(self) -> None:
        load, process, state, now = self._load, self._process, self.state, time.monotonic()
        progress = (process.pid, self._progress)
        loading = load.look(now, progress=progress, pending=state is EngineState.LOADING)
        working = self._hang.look(
            now,
            progress=progress,
            pending=state is EngineState.READY and self._ward.has_work(),
        )
        if loading is Health.HUNG:
            _log.error("the engine has not loaded its model in %g s: killed", load.limit_seconds)
            process.kill_hung()
        elif working is Health.HUNG:
            _log.error("the engine made no progress for %g s: killed", self._hang.limit_seconds)
            process.kill_hung()
        elif working is Health.SILENT:
            process.write_if_free(Ping())
