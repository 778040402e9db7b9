"""The server's durations are those of a client with a watch."""

from __future__ import annotations

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

pytestmark = pytest.mark.timeout(55)
"""On a busy machine two hundred requests, one after the other, take their time."""

_ROUNDS = 3
_KINDS = {"plain": 20, "stream": 30, "report": 10, "bad": 10}


@pytest.fixture(scope="module")
def rounds(tiny_model: Any, serving: Callable[..., Any]) -> list[Books]:
    """The books of some rounds, in which one client sent one request at a time."""
    traffics = []
    with access_log() as log, collector() as target:
        options = TelemetryOptions(model="tiny", otlp_endpoint=target.endpoint)
        telemetry = Telemetry(options, window=make_window())
        with serving(tiny_model, telemetry=telemetry) as server:
            for seed in range(_ROUNDS):
                traffics.append(Traffic(server, seed))
                traffics[-1].run(_KINDS, clients=1)
            wait_until(lambda: len(log.lines()) >= _ROUNDS * sum(_KINDS.values()))
            telemetry.force_flush()
            offset = epoch_offset_ns(server)
        return [
            Books(
                traffic=traffic,
                lines=log.lines(),
                spans=target.spans(),
                otlp={},
                prometheus={},
                legacy={},
                epoch_offset_ns=offset,
            )
            for traffic in traffics
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
    requests, in the best of three rounds.
    """
    best: dict[tuple[str, str], float] = {}
    for books in rounds:
        for name, found in _differences(books).items():
            best[name] = min(best.get(name, 1.0), statistics.median(map(abs, found)))
    assert len(best) == len(_KINDS) * 3 + 1
    late = {name: difference for name, difference in best.items() if difference > 0.005}
    assert {} == late


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
    """Return the client's less the server's seconds, by kinds of requests and what is compared."""
    found = defaultdict(list)
    for seen in books.traffic.seen:
        line = books.line_of(seen)
        begin, end = books.interval_of(seen)
        found[seen.kind, "begin"].append(seen.sent_at - begin)
        found[seen.kind, "end"].append(seen.ended_at - end)
        whole = seen.ended_at - seen.sent_at
        found[seen.kind, "whole"].append(whole - line["duration_seconds"])
        if seen.first_at:
            first = seen.first_at - seen.sent_at
            found[seen.kind, "first text"].append(first - line["first_token_seconds"])
    return found
