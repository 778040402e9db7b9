"""How the resident sets of a server and its engine go over time."""

from __future__ import annotations

import contextlib
import threading
import time
from statistics import linear_regression, median
from typing import TYPE_CHECKING, Self

import psutil

if TYPE_CHECKING:
    from support.patient import Patient

__all__ = ["MemoryWatch", "growth", "resident"]

_MIB = 1024 * 1024
_INTERVAL = 2.0
_WARM_UP = 60.0
"""Seconds that do not count: buffers and pools fill."""
_FEWEST = 2
"""Looks that make a line."""


def resident(server: Patient) -> float:
    """Return the resident bytes of server and engine together: the median of some looks."""
    looks = []
    for _ in range(5):
        looks.append(sum(_read(server)))
        time.sleep(0.1)
    return median(looks)


def growth(before: float, after: float) -> float:
    """Return how much larger it is now, as a share."""
    return after / before - 1.0


class MemoryWatch:
    """Looks every two seconds, in a thread of its own, while its context lasts."""

    def __init__(self, server: Patient) -> None:
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._samples: list[tuple[float, float, float]] = []
        """Seconds since the start, and the MiB of server and engine."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    def slope(self) -> str:
        """Say by how many MiB an hour the server grew, as the line of least squares has it."""
        warm = [sample for sample in self._samples if sample[0] > _WARM_UP]
        if len(warm) < _FEWEST:
            return "too few looks after the warm-up for a slope"
        line = linear_regression([each[0] for each in warm], [each[1] for each in warm])
        return f"{line.slope * 3600:+.2f} MiB an hour"

    def summary(self) -> str:
        """Say where both began and where they ended, in MiB."""
        if not self._samples:
            return "never looked at"
        (_, server, engine), (_, server_end, engine_end) = self._samples[0], self._samples[-1]
        return (
            f"server {server:.1f} to {server_end:.1f} MiB, "
            f"engine {engine:.1f} to {engine_end:.1f} MiB"
        )

    def _look(self) -> None:
        begin = time.monotonic()
        while not self._over.wait(_INTERVAL):
            # Between two engines there is none.
            with contextlib.suppress(psutil.NoSuchProcess, AssertionError):
                server, engine = _read(self._server)
                self._samples.append((time.monotonic() - begin, server / _MIB, engine / _MIB))


def _read(server: Patient) -> tuple[int, int]:
    return psutil.Process(server.pid).memory_info().rss, server.engine.memory_info().rss
