"""What a soak found: per class of requests, how long they took, and which promises were broken.

A fault excuses a request that is refused meanwhile. It never excuses an answer
that has no end or two; and where the engine alone ends, nothing but a refusal:
whoever is under way then is resumed.
"""

from __future__ import annotations

from collections import Counter
from statistics import median, quantiles
from typing import TYPE_CHECKING

from .soak_faults import ENGINE_ENDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from support.asks import Reply

    from .soak_faults import Window

__all__ = ["HEADING", "class_row"]

HEADING = "| class | requests | p50 ms | p95 ms | p95/p50 | broken promises | excused |"
_FEWEST = 2
"""Requests of which there are quantiles."""


def class_row(
    name: str, replies: Iterable[tuple[float, Reply]], windows: Sequence[Window]
) -> tuple[str, Counter[str]]:
    """Return a class's line of the table, and what failed of it that no fault excuses.

    Args:
        name: The class.
        replies: Each with when it was sent, in monotonic seconds.
        windows: When there were faults.
    """
    broken: Counter[str] = Counter()
    excused: Counter[str] = Counter()
    calm: list[float] = []
    count = 0
    for begin, reply in replies:
        count += 1
        faults = {each.name for each in windows if each.touches(begin, reply.seconds)}
        if not _as_expected(name, reply):
            failure = reply.error or reply.message or f"{reply.ends} ends"
            (excused if _excuses(faults, reply) else broken)[failure] += 1
        elif not faults:
            calm.append(reply.seconds * 1e3)
    failed = f"{dict(broken) or 0} | {dict(excused) or 0}"
    return f"| {name} | {count} | {_durations(calm)} | {failed} |", broken


def _durations(milliseconds: Sequence[float]) -> str:
    if len(milliseconds) < _FEWEST:
        return "too few | too few | too few"
    p50, p95 = median(milliseconds), quantiles(milliseconds, n=20)[-1]
    return f"{p50:.1f} | {p95:.1f} | {p95 / p50:.2f}"


def _as_expected(name: str, reply: Reply) -> bool:
    if name == "cancel" and reply.left:
        return True
    if name == "bad":
        return reply.status == 400
    return reply.whole


def _excuses(faults: set[str], reply: Reply) -> bool:
    """Whether the faults that a request met may have made it fail as it did."""
    was_answered = reply.status != 0
    if was_answered and reply.ends != 1:
        return False
    if not was_answered and reply.message.startswith(TimeoutError.__name__):
        return False
    if faults <= ENGINE_ENDS:
        return bool(faults) and was_answered and reply.error != "engine_died"
    return True
