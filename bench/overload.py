"""What a server does with more than it can: work done, time to refuse, and the time after a storm."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING

from .load import Load, Outcome, run_load
from .scenarios import OURS, Row, Setting, outcomes_as_json
from .servers import pharos_command, running

if TYPE_CHECKING:
    from collections.abc import Callable

    from .servers import ServerProcess

__all__ = ["OVERLOAD"]

_CAPACITY, _QUEUE, _CLIENTS = 4, 28, 200
_TOKENS = 300
_NORMAL = 1.5
"""Latency is normal where it is at most so many times the median from before the storm."""
_PATIENCE = 30.0


def overload(setting: Setting) -> list[Row]:
    """200 chats at once where 4 run and 28 may wait, then a storm of clients that never wait.

    The tokens per second of those accepted go against those of as many as fit.
    """
    fitting: list[Outcome] = []
    crowded: list[Outcome] = []
    calm: list[float] = []
    with running(
        *(pharos_command, setting.tiny, OURS),
        *("--max-batch", str(_CAPACITY), "--max-queue", str(_QUEUE)),
    ) as server:
        for number in range(setting.repeats + 1):
            fitting.append(_load(server, f"fit {number}", _CAPACITY + _QUEUE))
            crowded.append(_load(server, f"crowd {number}", _CLIENTS))
            calm.append(_latency(server, f"calm {number}"))
        storm = run_load(Load(server.port, server.model, _CLIENTS, _TOKENS, "storm", attempts=500))
        back = _seconds_until_normal(server, _NORMAL * median(calm[1:]))
    fitting, crowded = fitting[1:], crowded[1:]  # the first round warms up
    refusals = [1e3 * max(outcome.refused, default=0.0) for outcome in crowded]
    lost = sum(_CLIENTS - outcome.completed - len(outcome.refused) for outcome in crowded)
    raw = {"fitting": outcomes_as_json(fitting), "crowded": outcomes_as_json(crowded)}
    name = "200 at capacity 4"
    return [
        Row(
            name,
            "output tokens/s",
            [each.rate for each in crowded],
            "32 at capacity 4",
            [each.rate for each in fitting],
            ">= 0.9",
            raw=raw,
        ),
        Row(name, "slowest refusal, ms", refusals, "", [], "<= 200"),
        Row(name, "neither served nor refused", [float(lost)], "", [], "<= 0"),
        Row("a storm of 200", "attempts refused", [float(len(storm.refused))], "", [], ""),
        Row("a storm of 200", "s to normal latency", [back], "", [], "<= 10"),
    ]


def _load(server: ServerProcess, salt: str, streams: int) -> Outcome:
    return run_load(Load(server.port, server.model, streams, _TOKENS, salt, attempts=1))


def _latency(server: ServerProcess, salt: str) -> float:
    """Return the seconds of a chat when as many run as can."""
    return median(_load(server, salt, _CAPACITY).whole)


def _seconds_until_normal(server: ServerProcess, normal: float) -> float:
    begin = time.monotonic()
    attempt = 0
    while time.monotonic() - begin < _PATIENCE:
        sent = time.monotonic() - begin
        attempt += 1
        if _latency(server, f"after {attempt}") <= normal:
            return sent
    return _PATIENCE


OVERLOAD: dict[str, Callable[[Setting], list[Row]]] = {"overload": overload}
