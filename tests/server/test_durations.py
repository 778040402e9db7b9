"""The server's durations are those of a client with a watch."""

from __future__ import annotations

import os
import statistics
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest

from mlx_pharos.telemetry.collector import make_window
from mlx_pharos.telemetry.telemetry import Telemetry, TelemetryOptions
from support.access_log import access_log
from support.books import Books, epoch_offset_ns
from support.client import wait_until
from support.collector import collector
from support.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.timeout(100)
"""On a busy machine a hundred requests, one after the other, take their time."""

_ROUND = {"plain": 8, "stream": 12, "report": 6, "bad": 6}
_ROUNDS = 3


@pytest.fixture(scope="module")
def rounds(tiny_model: Any, serving: Callable[..., Any]) -> list[Books]:
    """The books of some rounds, in which one client sent one request at a time."""
    with access_log() as log, collector() as target:
        options = TelemetryOptions(model="tiny", otlp_endpoint=target.endpoint)
        telemetry = Telemetry(options, window=make_window())
        with serving(tiny_model, telemetry=telemetry) as server:
            traffics = [Traffic(server, seed) for seed in range(_ROUNDS)]
            for traffic in traffics:
                traffic.run(_ROUND, clients=1)
            wait_until(lambda: len(log.lines()) >= _ROUNDS * sum(_ROUND.values()))
            telemetry.force_flush()
            offset = epoch_offset_ns(server)
        return [
            Books(traffic, log.lines(), target.spans(), {}, {}, {}, offset) for traffic in traffics
        ]


def test_durations_are_the_clients(rounds: list[Books]) -> None:
    """Where client and server measure the same thing, it is the same within 5 ms.

    That is: how long a request took, when it began, when its first text was
    there, and when it ended. The client's begin is when it sends, its end when
    it has read the last byte; the server's are when a thread takes the request
    and when the last byte is written. Both are read from the one monotonic
    clock of this machine, so begins and ends are compared for themselves: none
    can make up for the other.

    Client, server and engine share a small machine, where a request that loses
    its turn waits for tens of milliseconds on either side. What holds for each
    request is therefore the order of these times, which is tested below and in
    the reconciliation of all books. Within 5 ms is the median of each kind of
    requests, in the best of three rounds. Where more wants to run than the
    machine has cores, nearly all lose their turn: there it is the closest
    request of each kind. Whatever the server measured wrong, it would for that
    one too.
    """
    busy = os.getloadavg()[0] > (os.cpu_count() or 1)
    typical = min if busy else statistics.median
    best: dict[tuple[str, str], float] = {}
    for books in rounds:
        for name, found in _differences(books).items():
            best[name] = min(best.get(name, 1.0), typical(found))
    assert len(best) == len(_ROUND) * 3 + 1
    assert {} == {name: difference for name, difference in best.items() if difference > 0.005}


def test_the_servers_interval_is_within_the_clients(rounds: list[Books]) -> None:
    """Of each request, without exception: it is begun after it was sent and before its answer
    comes, its first token is made before its text comes, and what generated it has ended before its
    end comes.
    """
    for books in rounds:
        for seen in books.traffic.seen:
            for what, (before, after) in books.ordered(seen).items():
                assert before <= after, (what, seen)


def _differences(books: Books) -> dict[tuple[str, str], list[float]]:
    """Return how far client and server are apart, in seconds, by kinds of requests and what is compared."""
    found = defaultdict(list)
    for seen in books.traffic.seen:
        line = books.line_of(seen)
        begin, end = books.interval_of(seen)
        found[seen.kind, "begin"].append(abs(seen.sent_at - begin))
        found[seen.kind, "end"].append(abs(seen.ended_at - end))
        whole = seen.ended_at - seen.sent_at
        found[seen.kind, "whole"].append(abs(whole - line["duration_seconds"]))
        if seen.first_at:
            first = seen.first_at - seen.sent_at
            found[seen.kind, "first text"].append(abs(first - line["first_token_seconds"]))
    return found
