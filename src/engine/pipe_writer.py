"""Writes to a pipe in order, and lets nobody wait for its reader."""

from __future__ import annotations

import contextlib
import queue
import select
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["PipeWriter"]

_SHORT = 2000
"""Bytes that a pipe takes at once where it takes any: a socket counts as writable from 2,048 on."""


class PipeWriter:
    """Takes frames from any thread; never blocks, however long nobody reads.

    A short frame is written by the caller where the pipe has room. Everything
    else is written by a thread, so that a long prompt to an engine that hangs
    holds up its own request alone, and no deadline, cancellation or shutdown.
    A broken pipe is the reader's to notice: what cannot be written is dropped.
    """

    def __init__(self, connection: Connection) -> None:
        """Start the thread. The writer owns the writing end from now on.

        Raises:
            RuntimeError: The system has no thread left.
        """
        self._connection = connection
        self._lock = threading.Lock()
        """Orders the frames; never held while the pipe is full."""
        self._backlog: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._waiting = 0
        """Frames that the thread has not written yet."""
        self._thread = threading.Thread(target=self._run, name="engine-writer", daemon=True)
        self._thread.start()

    def write(self, frame: bytes) -> None:
        """Write a frame after those that were given before."""
        with self._lock:
            if len(frame) <= _SHORT and self._is_free():
                self._send(frame)
            else:
                self._waiting += 1
                self._backlog.put(frame)

    def write_if_free(self, frame: bytes) -> None:
        """Write a short frame, or forget it where others wait or nobody reads."""
        with self._lock:
            if self._is_free():
                self._send(frame)

    def close(self) -> None:
        """End the thread, and close the connection, which has to be shut already. Safe to repeat."""
        self._backlog.put(None)
        self._thread.join()
        with self._lock:
            self._connection.close()

    def _is_free(self) -> bool:
        if self._waiting:
            return False
        pipe = select.poll()
        try:
            pipe.register(self._connection.fileno(), select.POLLOUT)
        except OSError:
            return False
        return bool(pipe.poll(0))

    def _run(self) -> None:
        while (frame := self._backlog.get()) is not None:
            self._send(frame)
            with self._lock:
                self._waiting -= 1

    def _send(self, frame: bytes) -> None:
        with contextlib.suppress(OSError):
            self._connection.send_bytes(frame)
