"""What policies report is what the scrape shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from mlx_pharos.server.policy_observation import (
    BreakerObserver,
    CacheFaultObserver,
    PredictionObserver,
    ReclaimObserver,
    ResumeCounter,
    RetryObserver,
)
from mlx_pharos.telemetry.attributes import RESTART_REASON
from mlx_pharos.telemetry.telemetry import Telemetry, TelemetryOptions

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    """Telemetry that exports nothing."""
    with Telemetry(TelemetryOptions(model="tiny")) as made:
        yield made


def _lines(telemetry: Telemetry, name: str) -> list[str]:
    text, _ = telemetry.prometheus.scrape()
    return [line for line in text.splitlines() if line.startswith(name)]


@dataclass(frozen=True)
class Change:
    """Of a breaker."""

    name: str
    to: str


@dataclass(frozen=True)
class Attempt:
    """Of a retry."""

    operation: str
    outcome: str


@dataclass(frozen=True)
class Freed:
    """Memory."""

    action: str
    freed_bytes: int


@dataclass(frozen=True)
class Compared:
    """A prediction and what came of it."""

    predicted_bytes: int
    measured_bytes: int


def test_a_breakers_state_and_changes_show(telemetry: Telemetry) -> None:
    """Exactly one state is 1, as the breaker is at the scrape, and each change counts."""
    state = ["closed"]
    observer = BreakerObserver(telemetry.instruments, {"prompt_cache": lambda: state[0]})
    for state[0] in ("open", "half_open", "open"):
        observer(Change("prompt_cache", state[0]))
    assert [
        'pharos_breaker_state{name="prompt_cache",state="closed"} 0.0',
        'pharos_breaker_state{name="prompt_cache",state="half_open"} 0.0',
        'pharos_breaker_state{name="prompt_cache",state="open"} 1.0',
    ] == _lines(telemetry, "pharos_breaker_state")
    assert [
        'pharos_breaker_transitions_total{name="prompt_cache",to="open"} 2.0',
        'pharos_breaker_transitions_total{name="prompt_cache",to="half_open"} 1.0',
    ] == _lines(telemetry, "pharos_breaker_transitions_total")


def test_retries_show_by_outcome(telemetry: Telemetry) -> None:
    """Attempts after the first are counted by operation and outcome."""
    observer = RetryObserver(telemetry.instruments)
    for outcome in ("retried", "retried", "succeeded"):
        observer(Attempt("download", outcome))
    assert [
        'pharos_retries_total{operation="download",outcome="retried"} 2.0',
        'pharos_retries_total{operation="download",outcome="succeeded"} 1.0',
    ] == _lines(telemetry, "pharos_retries_total")


def test_freed_memory_is_what_was_measured(telemetry: Telemetry) -> None:
    """Bytes add up by action, and an action that freed nothing shows as zero, never below."""
    observer = ReclaimObserver(telemetry.instruments)
    for freed in (1000, 500):
        observer(Freed("buffer_cache", freed))
    observer(Freed("shrink", -7))
    assert [
        'pharos_memory_reclaimed_bytes_total{action="buffer_cache"} 1500.0',
        'pharos_memory_reclaimed_bytes_total{action="shrink"} 0.0',
    ] == _lines(telemetry, "pharos_memory_reclaimed_bytes_total")


def test_cache_faults_show_by_kind(telemetry: Telemetry) -> None:
    """Failed operations and corrupt entries are counted apart."""
    observer = CacheFaultObserver(telemetry.instruments)
    observer.failed("store")
    observer.corrupt("content")
    assert ['pharos_prompt_cache_errors_total{kind="store",tier="ram"} 1.0'] == _lines(
        telemetry, "pharos_prompt_cache_errors_total"
    )
    assert ['pharos_prompt_cache_corruptions_total{kind="content",tier="ram"} 1.0'] == _lines(
        telemetry, "pharos_prompt_cache_corruptions_total"
    )


def test_predictions_are_compared_with_measurements(telemetry: Telemetry) -> None:
    """What needed 1.2 times its promise is above 1; what was not measured says nothing."""
    observer = PredictionObserver(telemetry.instruments)
    observer(Compared(100, 120))
    observer(Compared(100, 50))
    observer(Compared(100, 0))
    name = "pharos_ledger_prediction_ratio"
    assert f'{name}_bucket{{le="1.0"}} 1' in _lines(telemetry, name)
    assert f'{name}_bucket{{le="1.25"}} 2' in _lines(telemetry, name)
    assert [f"{name}_sum 1.7"] == _lines(telemetry, f"{name}_sum")


def test_resumed_requests_show_how_the_engine_ended(telemetry: Telemetry) -> None:
    """A signal by its name, any exit code as one word, anything else as one more; else zeros."""
    counter = ResumeCounter(telemetry.instruments)
    lines = _lines(telemetry, "pharos_requests_resumed_total")
    assert len(RESTART_REASON.values) == len(lines)
    assert all(line.endswith(" 0.0") for line in lines)
    counter("SIGKILL", 8)
    counter("exit code 3")
    counter("something new")
    lines = _lines(telemetry, "pharos_requests_resumed_total")
    assert {
        'pharos_requests_resumed_total{reason="SIGKILL"} 8.0',
        'pharos_requests_resumed_total{reason="exit"} 1.0',
        'pharos_requests_resumed_total{reason="_OTHER"} 1.0',
    } == {line for line in lines if not line.endswith(" 0.0")}
