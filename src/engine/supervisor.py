"""The engine process as the server sees it: started, watched, ended.

The process is spawned, never forked, and holds one end of a socket pair. It
ends when that pipe closes, whatever closed it, so that a server that is
killed leaves no orphan.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from ..resilience.caution import OUT_OF_MEMORY
from .pipe_writer import PipeWriter
from .protocol import OUT_OF_MEMORY_EXIT, EngineOptions, encode, encode_options

if TYPE_CHECKING:
    from .protocol import ToEngine

__all__ = ["EXIT_SECONDS", "EngineProcess"]

EXIT_SECONDS = 3.0
"""How long an engine may take to end after its pipe closed before it is killed. One that can still
do anything ends within two; a second SIGTERM must not wait long for one that cannot."""
_SPAWNER = ThreadPoolExecutor(1, thread_name_prefix="engine-spawner")
"""Its thread lives as long as this process. Linux can end a child with the thread that made it
(see the worker's ``_die_with_server``), so that thread must not be one that ends before."""


class EngineProcess:
    """One engine process and the server's end of its pipe.

    Owned by the engine client. ``connection`` is read by one thread; all else
    may be called from any thread.
    """

    def __init__(self) -> None:
        """Spawn the process; returns at once. It imports its libraries and waits for :meth:`start`.

        Raises:
            OSError: The system has no file, memory or process left.
            RuntimeError: It has no thread left.
        """
        with contextlib.ExitStack() as undo:
            ours, theirs = socket.socketpair()
            undo.enter_context(ours)
            with theirs:
                self._process = _SPAWNER.submit(_spawn, theirs.fileno()).result()
            undo.callback(self._kill)
            self.connection = Connection(ours.detach())
            undo.callback(self.connection.close)
            self._writer = PipeWriter(self.connection)
            undo.pop_all()
        self._hung = False

    def start(self, options: EngineOptions) -> None:
        """Tell the process what to load. A process that has died already is seen by the reader."""
        self._writer.write(encode_options(options))

    def write(self, message: ToEngine) -> None:
        """Send one message; returns at once. A broken pipe is the reader's to notice."""
        self._writer.write(encode(message))

    def write_if_free(self, message: ToEngine) -> None:
        """Send a short message, unless others wait or the process does not read."""
        self._writer.write_if_free(encode(message))

    def discard(self) -> None:
        """End a process that was never started; nothing is lost with it."""
        self._kill()
        self.close()

    def close(self) -> None:
        """Close our end of the pipe, once the process has ended and nobody reads it any more."""
        self._shut()
        self._writer.close()

    @property
    def pid(self) -> int:
        """The process id, also after the process has ended."""
        return self._process.pid

    def stop(self, *, patience: float = EXIT_SECONDS) -> None:
        """Shut the pipe and wait for the end; after ``patience`` seconds the process is killed."""
        self._shut()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._kill()

    def kill_hung(self) -> None:
        """Kill a process that makes no progress; SIGKILL ends one that is stopped, too."""
        self._hung = True
        self._process.kill()

    def describe_end(self) -> str:
        """Return why the process ended: ``hang``, ``out_of_memory``, a signal or an exit code."""
        self.stop()
        if self._hung:
            return "hang"
        code = self._process.returncode
        if code == OUT_OF_MEMORY_EXIT:
            return OUT_OF_MEMORY
        if code < 0:
            try:
                return signal.Signals(-code).name
            except ValueError:
                return f"signal {-code}"
        return f"exit code {code}"

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _shut(self) -> None:
        """Shut the socket in both directions, which also wakes a thread that reads it.

        The descriptor itself stays open until the client closes the connection
        after its reader has ended: a closed number could be reused by another
        thread's socket while the reader still holds it.
        """
        try:
            with socket.socket(fileno=os.dup(self.connection.fileno())) as duplicate:
                duplicate.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # already closed, or the other end is gone


def _spawn(pipe: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-P", "-m", "mlx_pharos.engine.worker", str(pipe)],
        stdin=subprocess.DEVNULL,
        pass_fds=(pipe,),
        env=_environment(),
        # Ctrl-C goes to all processes of a terminal's group; the server decides for both. Not a
        # session of its own: Linux divides processors among sessions before it looks at niceness.
        process_group=0,
    )


def _environment() -> dict[str, str]:
    """Return the environment without our settings: keys are not the engine's business."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PHAROS_") and name != "METRICS_API_KEY"
    }
    # The advice is to install PyTorch, which nothing here uses.
    return kept | {"TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}
