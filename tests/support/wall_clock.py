"""A wall clock that jumps under running processes, as when a person or NTP sets the machine's.

The machine's own clock is left alone: every Python process that begins with the
variables of a clock adds to ``time.time`` and ``time.time_ns`` what it says at the
moment, whoever calls them. Monotonic clocks go on, as the kernel's do.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import psutil

__all__ = ["WallClock"]

_CODE = '''\
"""Imported by Python itself before all else."""

import mmap
import os
import struct
import time

with open(os.environ["WALL_CLOCK"], "rb") as file:
    _ahead = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
_time, _time_ns = time.time, time.time_ns


def _seconds():
    return struct.unpack("=q", _ahead)[0]


time.time = lambda: _time() + _seconds()
time.time_ns = lambda: _time_ns() + _seconds() * 1_000_000_000
'''


class WallClock:
    """What the clocks of processes are ahead of the machine's.

    Args:
        directory: A new one for its files.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        (directory / "sitecustomize.py").write_text(_CODE, encoding="utf-8")
        self._file = directory / "seconds"
        self._file.write_bytes(bytes(8))
        path = os.pathsep.join(filter(None, [str(directory), os.environ.get("PYTHONPATH")]))
        self.variables = {"PYTHONPATH": path, "WALL_CLOCK": str(self._file)}
        """Of the environment of a process that is to have this clock; its children have it, too."""

    def jump_to(self, seconds: int) -> None:
        """Be so many seconds ahead from now on, behind where it is negative."""
        with self._file.open("r+b", buffering=0) as file:
            file.write(struct.pack("=q", seconds))

    def is_clock_of(self, process: psutil.Process) -> bool:
        """Whether a process has this clock."""
        return any(each.path == str(self._file) for each in process.memory_maps())
