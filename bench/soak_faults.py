"""The faults of the soak: each is done to a running server, and over when its function returns."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from support.asks import Ask, Client

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.patient import Patient

__all__ = ["FAULTS", "Window"]

_FLOOD = 150
_CONNECTIONS = 200


@dataclass
class Window:
    """The time in which a fault excuses what fails."""

    name: str
    begin: float
    end: float = float("inf")

    def touches(self, begin: float, seconds: float) -> bool:
        """Whether a request that took so long was under way meanwhile."""
        return begin < self.end and begin + seconds > self.begin


def _kill(server: Patient) -> int:
    server.engine.kill()
    _wait_restart(server)
    return 0


def _stop(server: Patient) -> int:
    server.engine.suspend()
    _wait_restart(server)
    return 0


def _flood(server: Patient) -> int:
    """More requests than there are places; some are refused."""
    return _send(server, _FLOOD, leave_after=None)


def _vanish(server: Patient) -> int:
    """Many clients that leave at once or after a few tokens."""
    return _send(server, 50, leave_after=random.Random(server.pid).randrange(0, 20))


def _connect(server: Patient) -> int:
    """Connections that say half a request and wait."""
    with contextlib.ExitStack() as stack:
        for _ in range(_CONNECTIONS):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            stack.callback(connection.close)
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        time.sleep(3)
    return 0


FAULTS: dict[str, Callable[[Patient], int]] = {
    "kill": _kill,
    "stop": _stop,
    "flood": _flood,
    "vanish": _vanish,
    "connect": _connect,
}
"""By name. Each returns how many generation requests it sent."""


def _send(server: Patient, count: int, *, leave_after: int | None) -> int:
    ask = Ask(
        "/v1/chat/completions",
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hurry"}],
            "max_tokens": 40,
            "stream": True,
        },
    )
    clients = [
        Client(server.port, ask, headers=server.headers, leave_after=leave_after)
        for _ in range(count)
    ]
    threads = [threading.Thread(target=client.run) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    wrong = [client.reply for client in clients if not client.reply.left and client.reply.ends != 1]
    assert not wrong, f"{len(wrong)} requests have no end, such as {wrong[0]}"
    return count


def _wait_restart(server: Patient) -> None:
    before = server.health()["engine"]["restarts"]
    server.wait_for(lambda: server.health()["engine"]["restarts"] > before, "a restart")
