"""What a soak found: per class of requests, inside and outside of faults."""

from __future__ import annotations

from collections import Counter
from statistics import median, quantiles
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from support.asks import Reply

    from .soak_faults import Window

__all__ = ["HEADING", "class_row"]

HEADING = "| class | requests | p50 ms | p95 ms | p95/p50 | failed outside faults | within |"


def class_row(
    name: str, replies: Iterable[tuple[float, Reply]], windows: Sequence[Window]
) -> tuple[str, Counter[str]]:
    """Return a class's line of the table, and what failed of it outside of all faults.

    Args:
        name: The class.
        replies: Each with when it was sent, in monotonic seconds.
        windows: When there were faults.
    """
    outside: Counter[str] = Counter()
    within: Counter[str] = Counter()
    calm, count = [], 0
    for begin, reply in replies:
        count += 1
        disturbed = any(each.touches(begin, reply.seconds) for each in windows)
        if not _as_expected(name, reply):
            (within if disturbed else outside)[reply.error or reply.message or "cut"] += 1
        elif not disturbed:
            calm.append(reply.seconds * 1e3)
    p50, p95 = median(calm), quantiles(calm, n=20)[-1]
    return (
        (
            f"| {name} | {count} | {p50:.1f} | {p95:.1f} | {p95 / p50:.2f} "
            f"| {dict(outside) or 0} | {dict(within) or 0} |"
        ),
        outside,
    )


def _as_expected(name: str, reply: Reply) -> bool:
    if name == "cancel" and reply.left:
        return True
    if name == "bad":
        return reply.status == 400
    return reply.whole
