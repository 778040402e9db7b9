"""An engine dies while the system has no room for another: it is started once there is."""

from __future__ import annotations

import os
import resource
import signal
from typing import TYPE_CHECKING

from mlx_pharos.engine.client import EngineState, start_engine
from mlx_pharos.engine.protocol import TextPrompt
from mlx_pharos.resilience.restarts import RestartPolicy
from support.client import wait_until
from support.engine import GREEDY, collect, engine_options, generate

if TYPE_CHECKING:
    from pathlib import Path

_TOKENS = 400


def test_it_is_tried_until_a_file_is_free_and_nothing_is_lost(tiny_model: Path) -> None:
    """No descriptor is left when the engine dies: its request waits, and has its whole text."""
    engine = start_engine(
        engine_options(tiny_model),
        max_batch=2,
        max_queue=2,
        restarts=RestartPolicy(first_delay_seconds=0.01),
    )
    try:
        assert engine.wait_ready(15), engine.down_reason
        expected = generate(engine, "greedy", max_tokens=_TOKENS).text()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with engine.submit(TextPrompt("greedy"), GREEDY, max_tokens=_TOKENS) as generation:
            first = collect(generation, until=3)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                os.kill(engine.pid, signal.SIGKILL)
                wait_until(lambda: "no other can be started yet" in engine.down_reason)
                assert EngineState.DOWN is engine.state
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            rest = collect(generation)
        assert expected == first.text() + rest.text()
        assert (1, "SIGKILL") == (engine.restarts, engine.last_ending)
        assert (EngineState.READY, "") == (engine.state, engine.down_reason)
    finally:
        engine.close()
