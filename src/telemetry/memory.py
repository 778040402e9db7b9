"""The resident sets of the server's processes, as the system counts them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["ResidentMemory"]


class ResidentMemory:
    """Reads resident sets, and keeps the highest sum seen and the first one asked for.

    Safe from any thread; a read takes some ten microseconds per process.
    """

    def __init__(self, processes: Callable[[], Mapping[str, int]]) -> None:
        """Watch processes: ``processes`` returns their ids by name, as they are now."""
        self._processes = processes
        self._lock = threading.Lock()
        self._opened: dict[int, psutil.Process] = {}
        self.initial: int | None = None
        """Bytes when :meth:`mark` was called first."""
        self.peak: int | None = None
        """Bytes, the highest sum of any read."""

    def read(self) -> dict[str, int]:
        """Return each process's bytes; one that has ended is missing."""
        found = {}
        with self._lock:
            for name, pid in self._processes().items():
                size = self._size(pid)
                if size is not None:
                    found[name] = size
        return found

    def total(self) -> int | None:
        """Return the bytes of all processes together; None where the system does not say."""
        found = self.read()
        if not found:
            return None
        total = sum(found.values())
        self.peak = total if self.peak is None else max(self.peak, total)
        return total

    def mark(self) -> None:
        """Take the initial figure, once."""
        if self.initial is None:
            self.initial = self.total()

    def reset(self) -> None:
        """Begin again: the initial figure and the highest one are those of now."""
        self.initial = self.peak = None
        self.mark()

    def _size(self, pid: int) -> int | None:
        try:
            process = self._opened.get(pid)
            if process is None:
                self._opened = {pid: psutil.Process(pid), **self._opened}
                process = self._opened[pid]
            return int(process.memory_info().rss)
        except (psutil.Error, OSError):
            self._opened.pop(pid, None)
            return None
