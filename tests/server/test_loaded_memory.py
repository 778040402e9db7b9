"""What MLX holds is told as soon as the model is loaded, and not told while nobody knows."""

from __future__ import annotations

import os
import re
import signal
from typing import TYPE_CHECKING, Any

from mlx_pharos.engine.client import EngineState
from mlx_pharos.resilience.restarts import RestartPolicy
from support.client import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.client import RunningServer

_KINDS = {"mlx_active", "mlx_cache", "mlx_peak"}


def _scraped(server: RunningServer) -> dict[str, float]:
    """What a scrape says of MLX's memory, by kinds."""
    text = server.get("/metrics").body.decode()
    found = re.findall(r'^pharos_memory_usage_bytes\{kind="(\w+)"\} (\S+)$', text, re.MULTILINE)
    return {kind: float(size) for kind, size in found}


def _assert_measured(server: RunningServer) -> None:
    """The model itself is in all figures, though no request has ever run in this engine."""
    assert 0.0 == server.engine.snapshot().at
    scraped = _scraped(server)
    memory = server.get("/health").json["memory"]
    assert _KINDS == {*scraped}
    assert 0 < memory["weights_bytes"] <= scraped["mlx_active"] <= scraped["mlx_peak"]
    assert scraped["mlx_active"] + scraped["mlx_cache"] == memory["held_bytes"]


def test_memory_is_measured_before_the_first_request(
    tiny_model: Path, serving: Callable[..., Any]
) -> None:
    """As soon as the engine is ready, and again as soon as another one is. In between there is no
    figure, and none that looks like one.
    """
    slow = RestartPolicy(first_delay_seconds=1.0, longest_delay_seconds=1.0)
    with serving(tiny_model, restarts=slow) as server:
        _assert_measured(server)
        assert 200 == server.chat(max_tokens=8).status
        after_work = _scraped(server)
        assert after_work["mlx_active"] <= after_work["mlx_peak"]

        os.kill(server.engine.pid, signal.SIGKILL)
        wait_until(lambda: server.engine.state is EngineState.DOWN)
        wait_until(lambda: _scraped(server) == {})
        assert 0 == server.get("/health").json["memory"]["held_bytes"]

        assert server.engine.wait_ready(20)
        _assert_measured(server)
