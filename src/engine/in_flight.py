"""The requests in flight, and which of them an engine may have at a time.

After an engine's death they go on in the next one: all together at first. When
one of them was in two deaths, all that were in any go on one by one: each alone
until it is past the place where the engine ended, then beside those that have
passed before. A request that kills every engine is found that way, and takes
nobody else along when its budget is used up.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .flight import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .flight import Flight
    from .protocol import ToEngine

__all__ = ["InFlight", "Verdict"]

_SUSPICIOUS_DEATHS = 2
"""One death is more often an accident, and going on together is faster."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an engine's death means for the requests."""

    kept: int
    """Requests that go on in the next engine."""
    convicted: tuple[Flight, ...] = ()
    """Those that were in more deaths than they may."""
    left: tuple[Flight, ...] = ()
    """Those whose clients have gone."""
    pardoned: frozenset[float] = field(default_factory=frozenset)
    """Times of deaths whose cause was found, or that happened to one request alone while others wait
    to go on: the engine may be started again for those."""


class InFlight:
    """Owns the flights. Safe from any thread; nothing is called with the lock held but ``write``.

    Args:
        crash_budget: Deaths that a request may be in and still go on.
    """

    def __init__(self, *, crash_budget: int = 2) -> None:
        self._crash_budget = crash_budget
        self._lock = threading.Lock()
        """Guards everything below; never held while something is written."""
        self._send_lock = threading.Lock()
        """Orders what is written: a request always before its cancellation."""
        self.busy_since = 0.0
        """When there was nothing in flight last, monotonic seconds."""
        self._flights: dict[int, Flight] = {}
        self._held: dict[int, Flight] = {}
        """Those to be sent, in the order of their ids."""
        self._careful = False
        """Whether suspects go on one by one."""
        self._trial: Flight | None = None
        """The suspect that is going on alone."""
        self._open = False
        self._shut = False

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self._flights)

    @property
    def pending(self) -> bool:
        """Whether the engine has anything to do."""
        return len(self._flights) > len(self._held)

    def add(self, flights: Iterable[Flight]) -> bool:
        """Take new requests, which are held until :meth:`send`; False when it is too late."""
        with self._lock:
            if self._shut:
                return False
            if not self._flights:
                self.busy_since = time.monotonic()
            for flight in flights:
                self._flights[flight.id] = self._held[flight.id] = flight
        return True

    def get(self, request_id: int) -> Flight | None:
        """Return a request in flight. Atomic without the lock."""
        return self._flights.get(request_id)

    def open(self) -> None:
        """Let requests go to the engine from now on."""
        with self._lock:
            self._open = True

    def send(self, write: Callable[[ToEngine], None]) -> list[Flight]:
        """Send every request that may go now; return those that went on from another engine.

        Args:
            write: Writes to the engine. What a broken pipe loses, the death makes up for.
        """
        resumed = []
        with self._send_lock:
            for flight, message in self._due():
                write(message)
                if flight.sends > 1:
                    resumed.append(flight)
        return resumed

    def cancel(
        self, request_id: int, write: Callable[[ToEngine], None], message: ToEngine
    ) -> Flight | None:
        """Cancel a request whose client has gone; return it where no engine has to end it."""
        with self._lock:
            flight = self._flights.get(request_id)
            if flight is None:
                return None
            flight.cancelled = True
            if flight.stage is Stage.HELD:
                self._forget(flight)
                return flight
        with self._send_lock:
            write(message)
        return None

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Keep all others from sending to the engine."""
        with self._send_lock:
            yield

    def remove(self, flight: Flight) -> None:
        """Forget a request that has ended."""
        with self._lock:
            self._forget(flight)

    def acquit(self, flight: Flight) -> bool:
        """End a request's trial if it is on trial and proven; return whether it was."""
        if flight is not self._trial or not flight.proven:
            return False
        with self._lock:
            flight.suspect = False
            self._trial = None
        return True

    @property
    def due(self) -> bool:
        """Whether :meth:`send` would send something."""
        return bool(self._held) and self._open and self._trial is None

    def interrupt(self, ending: str, at: float) -> Verdict:
        """Hold all requests, because the engine ended; judge who goes on in the next one.

        Args:
            ending: How it ended.
            at: When that was noticed.
        """
        with self._lock:
            self._open = False
            exposed = [flight for flight in self._flights.values() if flight.exposed]
            tried = self._trial is not None and self._trial.exposed
            charged = [self._trial] if self._trial is not None and tried else exposed
            self._trial = None
            for flight in charged:
                flight.deaths.add(at)
                flight.suspect = True
            for flight in self._flights.values():
                if flight.stage is not Stage.HELD:
                    flight.lost = (ending, at)
                flight.stage = Stage.HELD
            left = tuple(flight for flight in self._flights.values() if flight.cancelled)
            convicted = tuple(
                flight
                for flight in charged
                if len(flight.deaths) > self._crash_budget and not flight.cancelled
            )
            for flight in (*left, *convicted):
                self._forget(flight)
            self._held = dict(sorted(self._flights.items()))
            pardoned = self._pardon(charged, convicted)
            if tried and self._flights:
                pardoned |= {at}
            enough = min(_SUSPICIOUS_DEATHS, self._crash_budget)
            self._careful = any(
                flight.suspect and len(flight.deaths) >= enough for flight in self._held.values()
            )
            return Verdict(len(self._flights), convicted, left, pardoned)

    def shut(self) -> list[Flight]:
        """Take nothing any more; return the requests that nobody will end now."""
        with self._lock:
            self._shut = True
            self._open = False
            flights = list(self._flights.values())
            for flight in flights:
                self._forget(flight)
            return flights

    def _due(self) -> Iterator[tuple[Flight, ToEngine]]:
        """Yield what may be sent now; all but a few, unless there are suspects."""
        while True:
            with self._lock:
                flight = self._next()
                if flight is None:
                    return
                del self._held[flight.id]
                message = flight.send()
            yield flight, message

    def _next(self) -> Flight | None:
        if not self._held or not self._open or self._trial is not None:
            return None
        if self._careful:
            self._trial = next((each for each in self._held.values() if each.suspect), None)
            self._careful = self._trial is not None
        return self._trial or next(iter(self._held.values()))

    def _pardon(self, charged: list[Flight], convicted: tuple[Flight, ...]) -> frozenset[float]:
        """Charge nobody else with the deaths of a request that was alone when it died at last."""
        if len(charged) != 1 or not convicted:
            return frozenset()
        (culprit,) = convicted
        for flight in self._flights.values():
            flight.deaths -= culprit.deaths
            flight.suspect = flight.suspect and bool(flight.deaths)
        return frozenset(culprit.deaths)

    def _forget(self, flight: Flight) -> None:
        self._flights.pop(flight.id, None)
        self._held.pop(flight.id, None)
        if flight is self._trial:
            self._trial = None
