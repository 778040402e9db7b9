"""What a collector that is away or slow costs requests: nothing, or the row says so."""

from __future__ import annotations

import socket
from contextlib import ExitStack, contextmanager
from statistics import quantiles
from typing import TYPE_CHECKING

from .load import Load, run_load
from .receiver import receiver
from .scenarios import OURS, Row, Setting
from .servers import free_port, pharos_command, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from .servers import ServerProcess

__all__ = ["COLLECTORS"]

_STREAMS, _TOKENS, _LOADS = 16, 40, 12
"""One figure is the 95th percentile of a load's requests. It is paired with that of the load right
beside it, and there are many pairs: their median stands a machine that does other things too."""
_VARIABLES = {
    "OTEL_TRACES_SAMPLER": "always_on",
    "OTEL_BSP_SCHEDULE_DELAY": "500",
    "OTEL_METRIC_EXPORT_INTERVAL": "1000",
}


@contextmanager
def _black_hole() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def _dead() -> Iterator[str]:
    yield f"http://127.0.0.1:{free_port()}"


_NONE = "answers, too"
"""No fault: what two servers that are alike differ by here."""
_FAULTS: dict[str, Callable[[], AbstractContextManager[str]]] = {
    _NONE: receiver,
    "down": _dead,
    "black-holed": _black_hole,
    "slow (2 s)": lambda: receiver(delay=2.0),
    "answers 503": lambda: receiver(status=503),
}


def collectors(setting: Setting) -> list[Row]:
    """The 95th percentile of requests with a failing collector, against one that answers.

    The first row has no failing one: what it differs by from 1 is the machine's.
    """
    return [_compare(setting, name) for name in _FAULTS]


def _compare(setting: Setting, fault: str) -> Row:
    with ExitStack() as stack:
        endpoint = stack.enter_context(_FAULTS[fault]())
        ours = stack.enter_context(
            running(
                *(pharos_command, setting.tiny, OURS, "--otlp-endpoint", endpoint),
                variables=_VARIABLES,
            )
        )
        healthy = stack.enter_context(receiver())
        plain = stack.enter_context(
            running(
                *(pharos_command, setting.tiny, OURS, "--otlp-endpoint", healthy),
                variables=_VARIABLES,
            )
        )
        figures: tuple[list[float], list[float]] = ([], [])
        for number in range(_LOADS * setting.repeats):
            # In turn first and second; the first pairs warm up.
            for side in (0, 1) if number % 2 else (1, 0):
                seconds = _seconds((ours, plain)[side], str(number))
                if number >= _LOADS // 2:
                    figures[side].append(1e3 * quantiles(seconds, n=20, method="inclusive")[18])
    bound = "" if fault == _NONE else "<= 1.05"
    return Row(f"collector {fault}", "request p95, ms", figures[0], "answers", figures[1], bound)


def _seconds(server: ServerProcess, salt: str) -> list[float]:
    outcome = run_load(Load(server.port, server.model, _STREAMS, _TOKENS, f"collector.{salt}"))
    assert not outcome.failures
    return outcome.whole


COLLECTORS: dict[str, Callable[[Setting], list[Row]]] = {"collectors": collectors}
