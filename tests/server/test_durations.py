"""The server's durations are those of a client with a watch."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from support.access_log import access_log
from support.client import wait_until
from support.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.access_log import AccessLog
    from support.client import RunningServer


def test_durations_are_the_clients(serving: Callable[..., Any], tiny_model: Any) -> None:
    """One request at a time: the server's durations are the client's within 5 ms.

    The client's clock begins when it sends and ends with the last byte that it
    reads; the server's begins when a thread takes the request and ends when the
    last byte is written. Client, server and engine share a small machine, where a
    request that loses its turn waits for tens of milliseconds on either side; so it
    is the median difference that has to be within 5 ms, in the best of three rounds.
    No token ever came to the client before it was made.
    """
    with access_log() as log, serving(tiny_model) as server:
        rounds = [_differences(server, log, seed) for seed in range(3)]
    assert min(first for _, firsts in rounds for first in firsts) > -0.001
    assert min(_typical(whole) for whole, _ in rounds) < 0.005
    assert min(_typical(firsts) for _, firsts in rounds) < 0.005


def _differences(
    server: RunningServer, log: AccessLog, seed: int
) -> tuple[list[float], list[float]]:
    """Return the client's less the server's seconds, of whole requests and of first tokens."""
    traffic = Traffic(server, seed)
    traffic.run({"plain": 20, "stream": 30, "report": 10, "bad": 10}, clients=1)

    def by_id() -> dict[str, dict[str, Any]]:
        return {line["request_id"]: line for line in log.lines()}

    wait_until(lambda: by_id().keys() >= {each.request_id for each in traffic.seen})
    found = by_id()
    whole = [
        each.ended_at - each.sent_at - found[each.request_id]["duration_seconds"]
        for each in traffic.seen
    ]
    first = [
        each.first_at - each.sent_at - found[each.request_id]["first_token_seconds"]
        for each in traffic.seen
        if each.first_at
    ]
    return whole, first


def _typical(differences: list[float]) -> float:
    return statistics.median(map(abs, differences))
