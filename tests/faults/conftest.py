"""What the battery of faults shares: its seed, its sums, and the line that tells them."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

import pytest

from support.dangerous_model import write_dangerous_model
from support.examination import Examination, Tally

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.patient import Patient

__all__ = ["dangerous_model", "examine", "seed", "tally"]

_TALLY = Tally()
_SEED = int(os.environ.get("FAULT_SEED") or secrets.randbelow(1_000_000))


@pytest.fixture(scope="session")
def tally() -> Tally:
    """The sums over the run."""
    return _TALLY


@pytest.fixture(scope="session")
def seed() -> int:
    """What all requests are drawn by; ``FAULT_SEED`` replays a run."""
    return _SEED


@pytest.fixture
def examine(tally: Tally, seed: int) -> Callable[[Patient], Examination]:
    """Make the examination of a server."""

    def make(server: Patient) -> Examination:
        return Examination(server, tally, seed=seed, mark=f"planted{seed}prompt")

    return make


@pytest.fixture(scope="session")
def dangerous_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with prompts that kill its engine."""
    return write_dangerous_model(tmp_path_factory.mktemp("models") / "dangerous")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the faults did."""
    if _TALLY.faults:
        terminalreporter.write_line(
            f"faults survived: {_TALLY.survived} of {_TALLY.faults}, "
            f"requests: {_TALLY.requests}, lost: {_TALLY.lost}, doubled: {_TALLY.doubled} "
            f"(FAULT_SEED={_SEED})"
        )
