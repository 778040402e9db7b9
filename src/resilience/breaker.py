"""A breaker: switches off what fails again and again, and back on once it is shown to work.

::

    closed ──5 failures in a row──▶ open ──10 requests served without it──▶ half_open
       ▲                              ▲                                         │
       │                              └──────────────the probe fails────────────┤
       └─────────────────────────────────────────────the probe succeeds─────────┘

While it is off nothing can fail or succeed in it, so what leads back is neither
time nor luck: requests that were served well without it show that the rest of
the system is sound, and one probe, which only one caller may make, shows that
the switched-off part is.
"""

from __future__ import annotations

import enum
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Breaker", "BreakerState", "BreakerTransition"]


class BreakerState(enum.StrEnum):
    """What a breaker lets through."""

    CLOSED = "closed"
    """Everything: the part is in use."""
    OPEN = "open"
    """Nothing."""
    HALF_OPEN = "half_open"
    """One probe."""


@dataclass(frozen=True, slots=True)
class BreakerTransition:
    """A breaker's state has changed."""

    number: int
    """Counts this breaker's changes from 1. Threads may report two changes in the other order."""
    name: str
    origin: BreakerState
    to: BreakerState


class Breaker:
    """Safe from any thread. Its lock is held for a few lines, and never across a call out.

    Args:
        name: What it guards, in the words of metrics: ``prompt_cache``.
        failure_threshold: Failures in a row that open it.
        recovery_threshold: Requests that have to be served without the part before a probe.
        listener: Told of each change, in the thread that caused it, after the lock is free:
            it may ask the breaker anything.
    """

    def __init__(
        self,
        name: str,
        *,
        failure_threshold: int = 5,
        recovery_threshold: int = 10,
        listener: Callable[[BreakerTransition], None] | None = None,
    ) -> None:
        if failure_threshold < 1 or recovery_threshold < 1:
            raise ValueError("a breaker's thresholds are at least 1")
        self.name = name
        self._failure_threshold = failure_threshold
        self._recovery_threshold = recovery_threshold
        self._listener = listener
        self._lock = threading.Lock()
        self._state = BreakerState.CLOSED
        self._failures = 0
        """In a row, while it is closed."""
        self._served = 0
        """Requests without the part, while it is open."""
        self._probing = False
        self._transitions = dict.fromkeys(BreakerState, 0)

    @property
    def state(self) -> BreakerState:
        """The state now."""
        return self._state

    @property
    def is_closed(self) -> bool:
        """Whether the part may be used."""
        return self._state is BreakerState.CLOSED

    @property
    def transitions(self) -> dict[BreakerState, int]:
        """How often it went into each state, since it was made."""
        with self._lock:
            return dict(self._transitions)

    def record_failure(self) -> None:
        """Count an error of the part; the last of a row opens the breaker.

        One that comes late, from a use that began before the breaker opened,
        says nothing new and does not count.
        """
        with self._lock:
            if self._state is not BreakerState.CLOSED:
                return
            self._failures += 1
            if self._failures < self._failure_threshold:
                return
            change = self._go(BreakerState.OPEN)
        self._tell(change)

    def record_success(self) -> None:
        """Count a request whose uses of the part all went well: the row of errors ends."""
        with self._lock:
            if self._state is BreakerState.CLOSED:
                self._failures = 0

    def record_served_without(self) -> None:
        """Count a request that was served well, from begin to end, while the part was off."""
        with self._lock:
            if self._state is not BreakerState.OPEN:
                return
            self._served += 1
            if self._served < self._recovery_threshold:
                return
            change = self._go(BreakerState.HALF_OPEN)
        self._tell(change)

    def begin_probe(self) -> bool:
        """Take the right to probe; False where none is due, or another caller has it.

        Who gets it calls :meth:`end_probe` or :meth:`abandon_probe`, whatever happens.
        """
        with self._lock:
            if self._state is not BreakerState.HALF_OPEN or self._probing:
                return False
            self._probing = True
            return True

    def end_probe(self, *, verified: bool) -> None:
        """Say what the probe showed: the part works, and is on again; or wait for requests anew."""
        with self._lock:
            if not self._probing:
                return
            change = self._go(BreakerState.CLOSED if verified else BreakerState.OPEN)
        self._tell(change)

    def abandon_probe(self) -> None:
        """Give the right to probe back: the probe could not be made, and showed nothing."""
        with self._lock:
            self._probing = False

    def _go(self, to: BreakerState) -> BreakerTransition:
        """Change the state. The lock is held."""
        origin, self._state = self._state, to
        self._failures = self._served = 0
        self._probing = False
        self._transitions[to] += 1
        return BreakerTransition(sum(self._transitions.values()), self.name, origin, to)

    def _tell(self, change: BreakerTransition) -> None:
        if self._listener is not None:
            self._listener(change)
