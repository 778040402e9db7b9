"""What a server and its engine hold of the machine: after a fault no more than before it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from support.patient import Patient

__all__ = ["Bounds"]

_SETTLE_SECONDS = 20.0
_MEMORY_GROWTH = {"server": 64 << 20, "engine": 128 << 20}
"""Bytes. The server keeps buffers and windows of its telemetry. The engine keeps the states that the
load left to its prompt cache, MLX's buffers and the C library's heap: 4 to 12 MiB were measured after
most faults, 41 after eight streams of 2000 tokens, 67 after fifty answers that were cut off in one
batch. What grows with each request is the soak's to find; this is for what a fault loses at once."""
_MORE_THREADS = 1
_MORE_FILES = {"server": 2, "engine": 0}
"""A client's connection that is kept alive is a file of the server; the probes have one at most."""


@dataclass(frozen=True, slots=True)
class _Holding:
    """What one process holds."""

    pid: int
    files: int
    threads: int
    memory: int
    """Resident bytes."""

    @classmethod
    def of(cls, process: psutil.Process) -> _Holding:
        with process.oneshot():
            memory = process.memory_info().rss
            return cls(process.pid, process.num_fds(), process.num_threads(), memory)


class Bounds:
    """Looks at both processes before a fault and after it.

    The engine may be another process by then. It has served the same: before the fault all requests
    of the load were answered once, and then the load was.
    """

    def __init__(self, server: Patient) -> None:
        self._server = server
        self._before: dict[str, _Holding] = {}

    def take(self) -> None:
        """Take what they hold now, idle, for what they may hold."""
        self._before = self._now()

    def judge(self, *, engine: bool = True) -> None:
        """Wait until they hold no more than they did.

        Args:
            engine: Whether there has to be one; otherwise there must be none.
        """
        deadline = time.monotonic() + _SETTLE_SECONDS
        while True:
            now = self._now()
            assert engine == ("engine" in now)
            grown = [line for name in now for line in self._grown(name, now[name])]
            if not grown:
                return
            assert time.monotonic() < deadline, "; ".join(grown)
            time.sleep(0.1)

    def _now(self) -> dict[str, _Holding]:
        server = psutil.Process(self._server.pid)
        found = {"server": _Holding.of(server)}
        if engine := self._server.find_engine():
            found["engine"] = _Holding.of(engine)
        return found

    def _grown(self, name: str, now: _Holding) -> list[str]:
        before = self._before[name]
        grown = {
            "files": (before.files, now.files, _MORE_FILES[name]),
            "threads": (before.threads, now.threads, _MORE_THREADS),
            "resident bytes": (before.memory, now.memory, _MEMORY_GROWTH[name]),
        }
        return [
            f"the {name} holds {after} {what}, {at_first} before"
            for what, (at_first, after, more) in grown.items()
            if after > at_first + more
        ]
