"""The faults of the soak: each is done to a running server, and over when its function returns."""

from __future__ import annotations

import contextlib
import http.client
import resource
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from support.asks import Ask, Client
from support.limits import limited

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from support.patient import Patient

__all__ = ["ENGINE_ENDS", "FAULTS", "Window"]

_FLOOD = 150
_CONNECTIONS = 200
_LIMIT_SECONDS = 3.0
"""How long a limit of the kernel stays."""
_LARGE_BODY = 3_000_000
"""Bytes: more than what is kept in memory while it comes."""


@dataclass
class Window:
    """The time in which a fault excuses what fails."""

    name: str
    begin: float
    end: float = float("inf")

    def touches(self, begin: float, seconds: float) -> bool:
        """Whether a request that took so long was under way meanwhile."""
        return begin < self.end and begin + seconds > self.begin


def _kill(server: Patient, _draw: random.Random) -> int:
    server.engine.kill()
    _wait_restart(server)
    return 0


def _stop(server: Patient, _draw: random.Random) -> int:
    server.engine.suspend()
    _wait_restart(server)
    return 0


def _flood(server: Patient, _draw: random.Random) -> int:
    """More requests than there are places; some are refused."""
    return _send(server, _FLOOD, leave_after=None)


def _vanish(server: Patient, draw: random.Random) -> int:
    """Many clients that leave at once or after a few tokens."""
    return _send(server, 50, leave_after=draw.randrange(0, 20))


def _connect(server: Patient, _draw: random.Random) -> int:
    """Connections that say half a request and wait."""
    with contextlib.ExitStack() as stack:
        for _ in range(_CONNECTIONS):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            stack.callback(connection.close)
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        time.sleep(3)
    return 0


def _memory(server: Patient, _draw: random.Random) -> int:
    """The engine gets no more memory than it has; it lives on, or dies and is started again."""
    engine = server.engine
    before = server.health()["engine"]["restarts"]
    with contextlib.suppress(psutil.NoSuchProcess):
        with limited(engine, resource.RLIMIT_AS, engine.memory_info().vms):
            time.sleep(_LIMIT_SECONDS)
        if engine.is_running():
            return 0
    server.wait_for(lambda: server.health()["engine"]["restarts"] > before, "a restart")
    return 0


def _files(server: Patient, _draw: random.Random) -> int:
    """No file is left for newcomers."""
    process = psutil.Process(server.pid)
    with limited(process, resource.RLIMIT_NOFILE, process.num_fds()):
        time.sleep(_LIMIT_SECONDS)
    return 0


def _disk(server: Patient, _draw: random.Random) -> int:
    """Nothing can be written to a file, and a body comes that is larger than what memory takes."""
    with limited(psutil.Process(server.pid), resource.RLIMIT_FSIZE, 0):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json", **server.headers}
            connection.request("POST", "/v1/chat/completions", b" " * _LARGE_BODY, headers)
            status = connection.getresponse().status
    assert status in {400, 503}, f"a large body on a full disk is answered with {status}"
    return 0 if status == http.HTTPStatus.SERVICE_UNAVAILABLE else 1  # refused before a route


FAULTS: dict[str, Callable[[Patient, random.Random], int]] = {
    "kill": _kill,
    "stop": _stop,
    "flood": _flood,
    "vanish": _vanish,
    "connect": _connect,
    "memory": _memory,
    "files": _files,
    "disk": _disk,
}
"""By name. Each draws what it draws from the soak's seed, and returns how many generation requests
it sent."""
ENGINE_ENDS = frozenset({"kill", "stop"})
"""Those that end the engine and nothing else: whoever is under way is resumed."""


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
