"""``serve``: the life of the server process, from binding to its exit code."""

from __future__ import annotations

import contextlib
import gc
import logging
import signal
import sys
import threading
from typing import TYPE_CHECKING

from ..engine.client import EngineState
from .app import create_app, start_telemetry
from .listener import Listener, ListenError
from .observation import observe_listener
from .operations import operations_listener
from .places import PLACES
from .policy_observation import RetryObserver
from .sd_notify import SdNotify
from .shutdown import Shutdown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from flask import Flask

    from ..engine.client import EngineClient
    from .options import ServerOptions
    from .policy_observation import RetryAttempt

    _Say = Callable[[str, int], None]
    """Takes a line and how important it is to the log."""

__all__ = ["EXIT_CANNOT_LISTEN", "EXIT_NO_ENGINE", "serve"]

EXIT_NO_ENGINE = 1
"""The model could not be loaded, or its engine died too often: the server would never be ready
again. A service manager may try once more."""
EXIT_CANNOT_LISTEN = 2
"""The address is taken or not allowed: the operator has to change a setting."""

_log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LONG = 3600.0


def serve(
    options: ServerOptions,
    engine: EngineClient,
    *,
    say_in_log: bool = False,
    notify: SdNotify | None = None,
    retries: Iterable[RetryAttempt] = (),
) -> int:
    """Serve until a signal; return the process' exit code.

    Binds at once, so probes are answered while the model loads. The first
    SIGTERM or SIGINT lets running requests finish, the second ends them.
    Closes the engine at the end, whatever the end is.

    Args:
        options: Fixed for the server's life.
        engine: Started; may still load.
        say_in_log: Tell the operator through :mod:`logging`, for a log that programs read;
            else in plain lines on standard error.
        notify: The way to the service manager that started this process, if one did.
        retries: What had to be tried again before there was telemetry to count it.
    """
    shutdown = Shutdown()
    notify = notify or SdNotify()
    say = _log_line if say_in_log else _write_line
    telemetry = start_telemetry(options)
    try:
        try:
            app = create_app(options, engine, telemetry, shutdown)
            listener = _listener(app, options, shutdown, engine, notify)
            with operations_listener(app, options, shutdown) as second:
                observe_listener(telemetry.instruments, listener)
                count_retry = RetryObserver(telemetry.instruments)
                for each in retries:
                    count_retry(each)
                herald = _Herald(listener, options, engine, say, notify)
                if second is not None:
                    say(f"Pharos answers operations on {second.url}.", logging.INFO)
                _spare_the_collector()
                with _signals(listener):
                    herald.start()
                    listener.run()
                return herald.exit_code
        except ListenError as error:
            say(f"Pharos cannot start: {error}", logging.ERROR)
            return EXIT_CANNOT_LISTEN
    finally:
        engine.close()
        telemetry.shutdown()


def _spare_the_collector() -> None:
    """Take what was made at start, which stays, out of what garbage collection walks through.

    A full collection otherwise stops all streams for 40 ms.
    """
    gc.collect()
    gc.freeze()


def _listener(
    app: Flask,
    options: ServerOptions,
    shutdown: Shutdown,
    engine: EngineClient,
    notify: SdNotify,
) -> Listener:
    def drain() -> None:
        engine.drain()
        notify.stopping(f"Stopping; running requests get {options.drain_seconds:g} s.")

    return Listener(
        app,
        options,
        shutdown,
        on_drain=drain,
        places=app.extensions[PLACES],
        on_turn=notify.turn,
        turn_seconds=notify.turn_seconds,
    )


class _Herald:
    """Waits for the model in a thread of its own, and tells the operator how that went."""

    def __init__(
        self,
        listener: Listener,
        options: ServerOptions,
        engine: EngineClient,
        say: _Say,
        notify: SdNotify,
    ) -> None:
        self._say = say
        self._notify = notify
        self._listener = listener
        self._options = options
        self._engine = engine
        self.exit_code = 0

    def start(self) -> None:
        """Say where the server listens, and begin to wait."""
        self._notify.status("Loading the model.")
        self._say(f"Pharos listens on {self._listener.url} and loads the model.", logging.INFO)
        threading.Thread(target=self._wait, name="herald", daemon=True).start()

    def _wait(self) -> None:
        engine = self._engine
        while engine.state is EngineState.LOADING:
            engine.wait_ready(_LONG)
        if engine.state is EngineState.READY:
            name = self._options.model_name
            self._notify.ready(f"Serving '{name}' at {self._listener.url}/v1.")
            self._say(f"Pharos is ready: {self._listener.url}/v1 serves '{name}'.", logging.INFO)
        engine.wait_gone()
        if engine.state is EngineState.DOWN:
            self._say(f"Pharos cannot serve: {engine.down_reason}", logging.ERROR)
            if engine.loaded is None or self._options.exit_without_engine:
                self.exit_code = EXIT_NO_ENGINE
                self._listener.stop()


@contextlib.contextmanager
def _signals(listener: Listener) -> Iterator[None]:
    """Let SIGTERM and SIGINT stop the listener; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        listener.stop()

    before = [signal.signal(number, stop) for number in _SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(number, handler)


def _write_line(line: str, _: int) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _log_line(line: str, level: int) -> None:
    _log.log(level, line)
