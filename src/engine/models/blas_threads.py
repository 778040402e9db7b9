"""How many threads OpenBLAS may use, by what the machine has left.

A product that is split over threads is done when the last one is, and the
others wait for it by spinning. Where another process takes the core of one of
them, all wait for the kernel to bring it back. Measured on 2 cores, decoding 16
sequences with matrices of (576 x 1536): alone, two threads do 50 steps per
second and one does 30; with a neighbour that keeps one core half busy, 26 and 30;
with neighbours that want all cores, 1 and 20. So the number follows the load.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import psutil

from .machine import usable_cores

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable, Iterator

__all__ = ["BlasThreads", "CpuTimes", "cpu_times", "one_thread"]

_INTERVAL = 1.0
"""Seconds between two looks at the load."""

_TOLERANCE = 0.3
"""A core that others use less than this counts as free."""

_VARIABLE = "OPENBLAS_NUM_THREADS"


class CpuTimes(NamedTuple):
    """Seconds of all cores together, since some moment."""

    idle: float
    own: float
    """What this process has used."""


def cpu_times() -> CpuTimes:
    """Return the machine's and this process's times."""
    own = time.process_time()
    idle = psutil.cpu_times()
    return CpuTimes(idle.idle + getattr(idle, "iowait", 0.0), own)


class BlasThreads:
    """Owned by the thread that computes: it calls :meth:`adjust` between steps.

    An operator who has set ``OPENBLAS_NUM_THREADS`` has decided; nothing is
    changed then. Until the first adjustment one core is left to the others.

    Args:
        library: The loaded OpenBLAS.
        clock: Monotonic seconds.
        times: See :func:`cpu_times`.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        *,
        clock: Callable[[], float] = time.monotonic,
        times: Callable[[], CpuTimes] = cpu_times,
    ) -> None:
        self._set: Callable[[int], object] | None = getattr(
            library, "openblas_set_num_threads", None
        )
        self._clock = clock
        self._times = times
        self._looked_at = clock()
        self._last = times()
        fixed = os.environ.get(_VARIABLE, "")
        self._most = int(fixed) if fixed.isdigit() else usable_cores()
        self._count = self._most
        self._is_fixed = bool(fixed) or self._set is None
        if self._set is not None and not fixed:
            self._count = max(self._most - 1, 1)
            self._set(self._count)

    @property
    def count(self) -> int:
        """The threads that a product is split over now, at most."""
        return self._count

    def adjust(self) -> None:
        """Follow the load; costs nothing but a look at the clock for most calls."""
        if self._is_fixed:
            return
        now = self._clock()
        seconds = now - self._looked_at
        if seconds < _INTERVAL:
            return
        times = self._times()
        # What is idle, and what this process has now, is what it could have.
        free = (times.idle - self._last.idle + times.own - self._last.own) / seconds
        self._looked_at, self._last = now, times
        self._use(min(max(int(free + _TOLERANCE), 1), self._most))

    def _use(self, count: int) -> None:
        if count != self._count and self._set is not None:
            self._set(count)
            self._count = count


@contextmanager
def one_thread(library: ctypes.CDLL | None) -> Iterator[None]:
    """Let this OpenBLAS use one thread meanwhile; any other BLAS is left alone."""
    if library is None:
        yield
        return
    before = library.openblas_get_num_threads()
    library.openblas_set_num_threads(1)
    try:
        yield
    finally:
        library.openblas_set_num_threads(before)
