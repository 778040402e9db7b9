"""What a server goes through that traffic alone does not make sure of: each refusal, each failure.

How it comes to each is arranged. What came of it is what the clients saw.
"""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from support.client import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.client import RunningServer
    from support.traffic import Traffic

__all__ = [
    "MAX_BATCH",
    "MAX_QUEUE",
    "crowd",
    "drain",
    "kill_engines",
    "overdue",
    "poison",
    "starve",
]

MAX_BATCH = 16
"""Half of it is left when the engine has been short of memory: more than the six that are killed."""
MAX_QUEUE = 72
"""Beside a greedy client's 40 places there is room for one wide request, and not for two."""
_SECONDS = 20.0


def crowd(server: RunningServer, traffic: Traffic) -> None:
    """Let a greedy client have the batch, much of the queue, and more tokens than its key may use.

    Its next requests are refused for their rate. Others wait for a place in
    vain, until the queue's time is over or their own; of two that want many
    places one is refused at once.
    """
    done = threading.Event()
    with _running(traffic, "greedy", leave=done.is_set):
        kinds = {"rated": 6, "plain": 2, "stream": 2, "completion": 1, "late": 2, "late-stream": 2}
        try:
            traffic.run(kinds | {"wide": 2}, clients=17)
        finally:
            done.set()
    server.wait_idle(_SECONDS)


def overdue(traffic: Traffic) -> None:
    """Ask for more than can be done in time, as a body, and as a stream that has text by then."""
    traffic.until("late", lambda seen: seen.status == 504)
    traffic.until("late-stream", lambda seen: bool(seen.chunks))


def starve(server: RunningServer, traffic: Traffic) -> None:
    """Let the engine run out of memory twice. Till it takes work again, it refuses more of it."""
    traffic.run({"starved": 2}, clients=2)
    traffic.run({"plain": 2, "stream": 2}, clients=4)
    traffic.until("plain", lambda seen: seen.status == 200)
    server.wait_idle(_SECONDS)


def kill_engines(server: RunningServer, traffic: Traffic) -> None:
    """Let six streams meet an engine's end: four go on in the next one and end well. Two never end,
    and meet another end, which is one more than they may. Four requests come after that.
    """
    with ExitStack() as finite, ExitStack() as endless:
        for seed in (8, 9):
            endless.enter_context(_running(traffic, "endless", seed))
        for seed in range(4):
            finite.enter_context(_running(traffic, "long", seed))
        first = server.engine.pid
        os.kill(first, signal.SIGKILL)
        finite.close()
        wait_until(
            lambda: server.engine.pid != first and server.engine.snapshot().running == 2, _SECONDS
        )
        os.kill(server.engine.pid, signal.SIGKILL)
    traffic.run({"plain": 4}, clients=4)
    assert server.engine.wait_ready(_SECONDS)


def poison(server: RunningServer, traffic: Traffic) -> None:
    """Send what kills every engine, and again: the second time none is tried."""
    for _ in range(2):
        traffic.run({"deadly": 1}, clients=1)
        assert server.engine.wait_ready(_SECONDS)


def drain(server: RunningServer, traffic: Traffic) -> None:
    """Shut the server down while a stream runs: newcomers are refused, and at last it is cut off."""
    with _running(traffic, "endless"):
        server.listener.stop()
        traffic.until("plain", lambda seen: seen.error_code == "draining")
        traffic.run({"plain": 2, "stream": 2, "completion": 1, "report": 4, "bad": 4}, clients=3)
        server.listener.stop()


@contextmanager
def _running(
    traffic: Traffic, kind: str, seed: int = 0, *, leave: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Have a stream that has sent text when the block begins, and is read to its end after it."""
    begun = threading.Event()

    def note() -> bool:
        begun.set()
        return leave()

    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(traffic.send, kind, seed, leave=note)
        assert begun.wait(_SECONDS)
        yield
        traffic.seen.append(stream.result())
