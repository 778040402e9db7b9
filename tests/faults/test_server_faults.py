"""Ends of the server itself: asked for, asked for twice, and killed."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import psutil
import pytest

from support.planted import planted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.examination import Examination
    from support.patient import Patient


def test_asked_to_stop(tiny_model: Path, examine: Callable[[Patient], Examination]) -> None:
    """SIGTERM under load: what runs is finished, what comes is refused, the exit code is 0."""
    with planted(tiny_model, "--max-batch", "4", "--max-queue", "28") as server:
        examination = examine(server)
        asks = examination.draw(12)
        engine = server.engine
        with examination.load(asks, probe=False, held=True) as load:
            load.wait_for_text(40)
            server.send_signal(signal.SIGTERM)
            assert 0 == server.wait(40)
        assert not psutil.pid_exists(engine.pid)
        examination.judge_end(load, whole=True)


@pytest.mark.battery
def test_asked_twice(tiny_model: Path, examine: Callable[[Patient], Examination]) -> None:
    """A second SIGTERM ends what runs, in words."""
    with planted(tiny_model, "--max-batch", "4", "--max-queue", "28") as server:
        examination = examine(server)
        asks = examination.draw(12, tokens=4000, known=False)
        with examination.load(asks, probe=False, held=True) as load:
            load.wait_for_text(40)
            server.send_signal(signal.SIGTERM)
            server.wait_for(lambda: server.get("/readyz")[0] == 503, "draining")
            server.send_signal(signal.SIGTERM)
            assert 0 == server.wait(20)
        examination.judge_end(load, whole=False)


@pytest.mark.battery
def test_killed(tiny_model: Path, examine: Callable[[Patient], Examination]) -> None:
    """SIGKILL: every client's connection ends, and the engine is gone within 5 seconds."""
    with planted(tiny_model, "--max-batch", "4", "--max-queue", "28") as server:
        examination = examine(server)
        asks = examination.draw(8, tokens=2000, known=False)
        engine = server.engine
        with examination.load(asks, probe=False, held=True) as load:
            load.wait_for_text(40)
            server.send_signal(signal.SIGKILL)
            server.wait(10)
            engine.wait(5)
        assert all(reply.ends <= 1 for reply in load.replies)
