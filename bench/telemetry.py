"""What telemetry costs a loaded server: everything on against everything off, and the polls."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import ExitStack
from statistics import median, quantiles
from typing import TYPE_CHECKING

from .echo import echo
from .load import Load, run_load
from .poller import SCRAPES, polling
from .receiver import receiver
from .scenarios import OURS, Row, Setting, outcomes_as_json
from .servers import pharos_command, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .load import Outcome
    from .servers import ServerProcess

__all__ = ["TELEMETRY"]

_STREAMS, _TOKENS = 32, 400
_OFF = {"OTEL_SDK_DISABLED": "true"}
_ON = {
    "OTEL_TRACES_SAMPLER": "always_on",
    "OTEL_METRIC_EXPORT_INTERVAL": "5000",
    "OTEL_LOGS_EXPORTER": "otlp",
}
_POLLS = 500
"""Of each path at least, for a 99th percentile."""
_LONGEST_ROUNDS = 60
_PERIOD = 0.09
"""Seconds in which each path is asked for once: a pause of 30 ms between two of them."""
_NOTHING = "/livez"
_ECHO = "another process"
_POLL_BOUNDS = {"/v1/metrics": "<= 5", "/metrics": "<= 25", _NOTHING: "", _ECHO: ""}


def telemetry_32(setting: Setting) -> list[Row]:
    """32 streams with all traces, OTLP, a scrape and a poll each second, against none of it."""
    on: list[Outcome] = []
    off: list[Outcome] = []
    with ExitStack() as stack:
        endpoint = stack.enter_context(receiver())
        observed = stack.enter_context(
            running(
                *(pharos_command, setting.tiny, OURS),
                *("--log-level", "info", "--otlp-endpoint", endpoint),
                variables=_ON,
            )
        )
        silent = stack.enter_context(
            running(*(pharos_command, setting.tiny, OURS, "--log-level", "error"), variables=_OFF)
        )
        for number in range(setting.repeats + 1):
            # In turn first and second, so that a machine that slows down favours neither.
            pair: list[Callable[[], None]] = [
                lambda number=number: on.append(_observed(observed, number)),  # type: ignore[misc]
                lambda number=number: off.append(_load(silent, number)),  # type: ignore[misc]
            ]
            for run in pair if number % 2 else pair[::-1]:
                run()
    on, off = on[1:], off[1:]  # the first round warms up
    return [
        Row(
            "telemetry, 32 streams",
            "output tokens/s, all on",
            [outcome.rate for outcome in on],
            "all off",
            [outcome.rate for outcome in off],
            ">= 0.97",
            raw={"on": outcomes_as_json(on), "off": outcomes_as_json(off)},
        )
    ]


def _load(server: ServerProcess, number: int) -> Outcome:
    return run_load(Load(server.port, server.model, _STREAMS, _TOKENS, f"telemetry.{number}"))


def _observed(server: ServerProcess, number: int) -> Outcome:
    with polling(server.port, 1.0):
        return _load(server, number)


def polls(setting: Setting) -> list[Row]:
    """How long ``/metrics`` and ``/v1/metrics`` take while 32 streams run, and ``/livez`` meanwhile.

    The latter asks for nothing: it shows what the wait for a thread takes. And an answer of another
    process, which takes no work at all: it shows what the wait for the machine takes. Polls that came
    while the streams of a round began, all at once, or ended have rows of their own.
    """
    kept: dict[tuple[str, bool], list[float]] = defaultdict(list)
    with ExitStack() as stack:
        limit = stack.enter_context(echo())
        endpoint = stack.enter_context(receiver())
        server = stack.enter_context(
            running(pharos_command, setting.tiny, OURS, "--otlp-endpoint", endpoint, variables=_ON)
        )
        _load(server, 0)
        for number in range(1, _LONGEST_ROUNDS):
            for path, all_run, seconds in _polled_round(server, limit, number):
                kept[path, all_run].append(seconds)
            if len(kept[_NOTHING, True]) >= _POLLS:
                break
    return [
        row
        for all_run in (True, False)
        for path, bound in _POLL_BOUNDS.items()
        for row in _poll_rows(path, kept[path, all_run], bound, all_run=all_run)
    ]


def _polled_round(
    server: ServerProcess, limit: int, number: int
) -> Iterator[tuple[str, bool, float]]:
    """Return each poll of a round: what was asked, whether all streams ran then, and its seconds."""
    with (
        polling(server.port, _PERIOD, [*SCRAPES, _NOTHING]) as found,
        polling(limit, _PERIOD, ["/"]) as least,
    ):
        began_at = time.monotonic()
        load = _load(server, number)
        ended_at = time.monotonic()
    begin, end = load.together
    for path, polls_of_path in (found | {_ECHO: least["/"]}).items():
        for at, seconds in polls_of_path:
            if began_at <= at < ended_at:
                yield path, begin <= at < end, seconds


def _poll_rows(path: str, seconds: list[float], bound: str, *, all_run: bool) -> list[Row]:
    taken = [1e3 * each for each in seconds]
    what, bound = (path, bound) if all_run else (f"{path} as they begin and end", "")
    name, raw = "polls, 32 streams", {"milliseconds": taken}
    return [
        Row(name, f"{what} p99, ms", [quantiles(taken, n=100)[98]], "", [], bound, raw=raw),
        Row(name, f"{what} median, ms", [median(taken)], "", [], ""),
    ]


TELEMETRY: dict[str, Callable[[Setting], list[Row]]] = {
    "telemetry-32": telemetry_32,
    "polls": polls,
}
