"""``serve``: the life of the server process, from binding to its exit code."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from typing import TYPE_CHECKING

from ..engine.client import EngineState
from .app import create_app, start_telemetry
from .listener import Listener, ListenError
from .observation import observe_listener
from .shutdown import Shutdown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..engine.client import EngineClient
    from .options import ServerOptions

__all__ = ["EXIT_CANNOT_LISTEN", "EXIT_NO_MODEL", "serve"]

EXIT_NO_MODEL = 1
"""The model could not be loaded, so the server would never be ready."""
EXIT_CANNOT_LISTEN = 2
"""The address is taken or not allowed: the operator has to change a setting."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LONG = 3600.0


def serve(options: ServerOptions, engine: EngineClient) -> int:
    """Serve until a signal; return the process' exit code.

    Binds at once, so probes are answered while the model loads. The first
    SIGTERM or SIGINT lets running requests finish, the second ends them.
    Closes the engine at the end, whatever the end is.
    """
    shutdown = Shutdown()
    telemetry = start_telemetry(options)
    try:
        try:
            app = create_app(options, engine, telemetry, shutdown)
            listener = Listener(app, options, shutdown, on_drain=engine.drain)
        except ListenError as error:
            _say(f"Pharos cannot start: {error}")
            return EXIT_CANNOT_LISTEN
        observe_listener(telemetry.instruments, listener)
        herald = _Herald(listener, options, engine)
        with _signals(listener):
            herald.start()
            listener.run()
        return herald.exit_code
    finally:
        engine.close()
        telemetry.shutdown()


class _Herald:
    """Waits for the model in a thread of its own, and tells the operator how that went."""

    def __init__(self, listener: Listener, options: ServerOptions, engine: EngineClient) -> None:
        self._listener = listener
        self._options = options
        self._engine = engine
        self.exit_code = 0

    def start(self) -> None:
        """Say where the server listens, and begin to wait."""
        _say(f"Pharos listens on {self._listener.url} and loads the model.")
        threading.Thread(target=self._wait, name="herald", daemon=True).start()

    def _wait(self) -> None:
        engine = self._engine
        while engine.state is EngineState.LOADING:
            engine.wait_ready(_LONG)
        if engine.state is EngineState.READY:
            name = self._options.model_name
            _say(f"Pharos is ready: {self._listener.url}/v1 serves '{name}'.")
        elif engine.state is EngineState.DOWN and engine.loaded is None:
            _say(f"Pharos cannot serve: {engine.down_reason}")
            self.exit_code = EXIT_NO_MODEL
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


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
