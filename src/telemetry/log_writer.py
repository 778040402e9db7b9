"""Writes the log's lines in a thread of its own: a reader that stops holds up nobody.

Standard error may be a terminal on which somebody pressed Ctrl-S, a pager, or a
collector that hangs. A write to it then waits, and whoever logs with it: one
request after the other, probes too, until no thread is left.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque

__all__ = ["LogWriter"]

_log = logging.getLogger(__name__)

_MOST_BYTES = 4 * 1024 * 1024
"""What waits for a reader at most: about ten thousand lines. Newer ones are lost then, and counted."""
_PIECE_BYTES = select.PIPE_BUF
"""Several lines are written at once up to here: a pipe takes it whole, so no other process' line comes
between, and a slow reader soon makes room. 4096 on Linux, 512 on macOS."""
_GATHER_SECONDS = 0.01
"""After lines were written the next ones are gathered so long: to wake a thread costs a request more
than to write its line. A line after a pause is written at once."""


class LogWriter:
    """What :class:`logging.StreamHandler` needs of a stream. Safe from any thread; never waits.

    Args:
        descriptor: Of the open file that is written to, in UTF-8. Its owner keeps it open.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        # Its lock can be taken again, so a signal's handler may log in the middle of a write.
        self._changed = threading.Condition()
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        """Of all lines that are not written, with those that are being written."""
        self._lost = 0
        threading.Thread(target=self._run, name="log-writer", daemon=True).start()

    def isatty(self) -> bool:
        """Whether a person reads it."""
        return os.isatty(self._descriptor)

    def write(self, text: str) -> int:
        """Take a line, or lose it where too many wait."""
        line = text.encode("utf-8", "backslashreplace")
        with self._changed:
            if self._bytes + len(line) > _MOST_BYTES:
                self._lost += 1
            else:
                self._lines.append(line)
                self._bytes += len(line)
                self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Do nothing: each line is written as soon as it can be."""

    def finish(self, seconds: float) -> None:
        """Wait until all lines are written, but no longer than that."""
        with self._changed:
            self._changed.wait_for(lambda: not self._bytes, seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                lines = self._take()
            self._put(lines)
            with self._changed:
                self._bytes -= len(lines)
                lost, self._lost = self._lost, 0
                self._changed.notify_all()
            if lost:
                _log.warning("%d lines of the log are lost: nobody read them in time", lost)
            if not self._lines:
                time.sleep(_GATHER_SECONDS)

    def _take(self) -> bytes:
        """Take the lines that wait, up to a piece. The lock is held."""
        lines = [self._lines.popleft()]
        size = len(lines[0])
        while self._lines and size + len(self._lines[0]) <= _PIECE_BYTES:
            lines.append(self._lines.popleft())
            size += len(lines[-1])
        return b"".join(lines)

    def _put(self, lines: bytes) -> None:
        """Write whole lines. Where nobody can read them any more they are dropped."""
        while lines:
            try:
                lines = lines[os.write(self._descriptor, lines) :]
            except BlockingIOError:  # somebody has made it non-blocking, as shells' jobs do
                time.sleep(0.05)
            except OSError:
                return
