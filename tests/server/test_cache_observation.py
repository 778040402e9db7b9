"""What the engine tells of its prompt cache is what the scrape shows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from mlx_pharos.engine.engine_state import EngineSnapshot
from mlx_pharos.engine.protocol import PromptCacheHealth, StepFigures
from mlx_pharos.server.cache_observation import CacheHealthFolder
from mlx_pharos.telemetry.telemetry import Telemetry, TelemetryOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlx_pharos.engine.client import EngineClient


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    """Telemetry that exports nothing."""
    with Telemetry(TelemetryOptions(model="tiny")) as made:
        yield made


def _shown(telemetry: Telemetry, *names: str) -> dict[str, float]:
    """The samples that are not zero."""
    text, _ = telemetry.prometheus.scrape()
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(names)]
    return {name: float(value) for name, value in lines if float(value)}


def test_totals_become_counts_also_over_a_restart(telemetry: Telemetry) -> None:
    """Errors, corruptions and transitions count what totals grew by; a new engine begins at zero,
    and what it tells comes on top; the state is that of the last step.
    """
    last = [PromptCacheHealth()]

    def snapshot() -> EngineSnapshot:
        return EngineSnapshot(figures=StepFigures(prompt_cache_health=last[0]))

    engine = cast("EngineClient", SimpleNamespace(snapshot=snapshot))
    fold = CacheHealthFolder(telemetry.instruments, engine)
    steps = [
        PromptCacheHealth(errors=(1, 0, 0, 2), corruptions=(1, 0)),
        PromptCacheHealth("open", (0, 1, 0), (3, 0, 0, 2), (1, 0)),
        PromptCacheHealth("open", (0, 1, 0), (3, 0, 0, 2), (1, 0)),
        None,
        PromptCacheHealth("half_open", (0, 1, 1), (5, 0, 0, 0), (0, 0)),
    ]
    for health in steps:
        if health is None:
            fold.restarted()
        else:
            last[0] = health
            fold(health)
    assert {
        'pharos_prompt_cache_errors_total{kind="lookup",tier="ram"}': 8,
        'pharos_prompt_cache_errors_total{kind="store",tier="ram"}': 2,
        'pharos_prompt_cache_corruptions_total{kind="format",tier="ram"}': 1,
        'pharos_breaker_transitions_total{name="prompt_cache",to="half_open"}': 1,
        'pharos_breaker_transitions_total{name="prompt_cache",to="open"}': 2,
        'pharos_breaker_state{name="prompt_cache",state="half_open"}': 1,
    } == _shown(telemetry, "pharos_prompt_cache_errors", "pharos_prompt_cache_c", "pharos_breaker")
