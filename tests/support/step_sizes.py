"""An engine after a crash: fewer sequences in a step, and as many again after a while without one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from support.asks import Ask
    from support.examination import Examination, Load

__all__ = ["judge_growth", "judge_half"]

_GROWN_SECONDS = 90.0
"""The promise is 30, and it can only be seen when there is work."""


def judge_half(examination: Examination, load: Load, *, half: int) -> None:
    """See that an engine that was just started does half at once, while the load goes on.

    Call it as soon as the restart is counted: what the engine before it did is counted by then.
    """
    server = examination.server
    server.wait_ready()
    more, some = server.steps_above(half), server.steps_above(half // 2)
    server.wait_for(lambda: server.steps_above(half // 2) > some or load.is_over, "steps at half")
    assert more == server.steps_above(half)


def judge_growth(examination: Examination, load: Load, asks: Sequence[Ask], *, half: int) -> None:
    """Ask again and again until the engine does more than half at once; the load has all of it."""
    server = examination.server
    more = server.steps_above(half)
    deadline = time.monotonic() + _GROWN_SECONDS
    while server.steps_above(half) == more:
        assert time.monotonic() < deadline, "the engine has not grown back"
        time.sleep(1.0)
        with examination.load(asks, held=True) as again:
            pass
        load.clients += again.clients
