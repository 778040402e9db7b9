"""What a service manager such as systemd is told: ready, still turning, stopping.

The protocol is a datagram of ``NAME=value`` lines to the socket that the
variable ``NOTIFY_SOCKET`` names, as sd_notify(3) describes it. Without the
variable nothing is sent.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["SdNotify"]

_log = logging.getLogger(__name__)

_PINGS_PER_INTERVAL = 3
"""Two pings may be lost or late before the service manager acts."""
_MICROSECONDS = 1e6


class SdNotify:
    """The way to the service manager, for the life of the process.

    Args:
        address: A path, or an abstract socket's name after ``@``; empty: nobody listens.
        watchdog_seconds: Within which the service manager wants a sign of life; 0: it does not.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        address: str = "",
        watchdog_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._interval = watchdog_seconds / _PINGS_PER_INTERVAL
        self._clock = clock
        self._last_ping = float("-inf")
        self._failed = False

    @classmethod
    def of(cls, environment: Mapping[str, str], pid: int | None = None) -> SdNotify:
        """Return what the variables say; a watchdog that is set for another process is not ours."""
        watched = environment.get("WATCHDOG_PID", "") in {"", str(pid or os.getpid())}
        micros = environment.get("WATCHDOG_USEC", "") if watched else ""
        return cls(
            environment.get("NOTIFY_SOCKET", ""),
            int(micros) / _MICROSECONDS if micros.isdecimal() else 0.0,
        )

    @property
    def turn_seconds(self) -> float:
        """How often :meth:`turn` has to be called at least."""
        return self._interval if self._interval and self._address else float("inf")

    def ready(self, status: str) -> None:
        """Say that the service has started, with a line for people."""
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        """Give people another line."""
        self._send(f"STATUS={status}")

    def stopping(self, status: str) -> None:
        """Say that the end has begun."""
        self._send(f"STOPPING=1\nSTATUS={status}")

    def turn(self) -> None:
        """Send a sign of life where one is due.

        Called by the loop that serves, in its own thread, so that a loop that
        stands still is silent.
        """
        now = self._clock()
        if self.turn_seconds != float("inf") and now - self._last_ping >= self._interval:
            self._last_ping = now
            self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        """Send without ever waiting: a full or vanished socket costs a message, not the server."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(message.encode(), self._address)
        except OSError as error:
            if not self._failed:
                _log.warning("the service manager cannot be told: %s", error.strerror)
            self._failed = True
