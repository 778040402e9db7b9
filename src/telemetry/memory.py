"""The resident sets of the server's processes, as the system counts them."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import threading
import weakref
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["ResidentMemory"]


_LONGEST = 256
"""Bytes of the file: seven numbers."""


class _Statm:
    """Linux' own file about a process, open as long as somebody may look.

    To open it anew takes five system calls, and after each of Python's calls a busy server's other
    threads may have the interpreter for a while: those who ask for figures wait for that. So it is
    read with the interpreter kept (:class:`ctypes.PyDLL`), for the few microseconds that it takes. Of one
    thread at a time.
    """

    def __init__(self, pid: int) -> None:
        self._file = os.open(f"/proc/{pid}/statm", os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._page = resource.getpagesize()
        self._buffer = ctypes.create_string_buffer(_LONGEST)
        self._pread = ctypes.PyDLL(None).pread
        self._pread.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long)
        self._pread.restype = ctypes.c_ssize_t

    def size(self) -> int:
        """Return the second figure, which is in pages (``proc_pid_statm(5)``).

        Raises:
            ProcessLookupError: It has ended.
        """
        length = self._pread(self._file, self._buffer, _LONGEST, 0)
        if length <= 0:
            raise ProcessLookupError
        return int(self._buffer.raw[:length].split()[1]) * self._page


class _Psutil:
    """The way of all other systems."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)

    def size(self) -> int:
        """Return what the system says."""
        return int(self._process.memory_info().rss)


_Process = _Statm if sys.platform == "linux" else _Psutil


class ResidentMemory:
    """Reads resident sets, and keeps the highest sum seen and the first one asked for.

    Safe from any thread; a read takes some microseconds per process.
    """

    def __init__(self, processes: Callable[[], Mapping[str, int]]) -> None:
        """Watch processes: ``processes`` returns their ids by name, as they are now."""
        self._processes = processes
        self._lock = threading.Lock()
        self._opened: dict[int, _Statm | _Psutil] = {}
        self.initial: int | None = None
        """Bytes when :meth:`mark` was called first."""
        self.peak: int | None = None
        """Bytes, the highest sum that anybody's read has found; it never falls but by :meth:`reset`."""

    def read(self) -> dict[str, int]:
        """Return each process's bytes; one that has ended is missing."""
        with self._lock:
            return self._read()

    def total(self) -> int | None:
        """Return the bytes of all processes together; None where the system does not say."""
        return _sum(self.read())

    def mark(self) -> None:
        """Take the initial figure, once."""
        with self._lock:
            if self.initial is None:
                self.initial = _sum(self._read())

    def reset(self) -> None:
        """Begin again: the initial figure and the highest one are those of now."""
        with self._lock:
            self.peak = None
            self.initial = _sum(self._read())

    def _read(self) -> dict[str, int]:
        """Read, and keep the sum where it is the highest. With the lock held."""
        found = {}
        processes = self._processes()
        for ended in self._opened.keys() - processes.values():
            del self._opened[ended]
        for name, pid in processes.items():
            size = self._size(pid)
            if size is not None:
                found[name] = size
        total = _sum(found)
        if total is not None and (self.peak is None or total > self.peak):
            self.peak = total
        return found

    def _size(self, pid: int) -> int | None:
        try:
            if pid not in self._opened:
                self._opened[pid] = _Process(pid)
            return self._opened[pid].size()
        except (psutil.Error, OSError):
            self._opened.pop(pid, None)
            return None


def _sum(sizes: Mapping[str, int]) -> int | None:
    return sum(sizes.values()) if sizes else None
