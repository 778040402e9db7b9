"""What the battery of faults shares: its seed, and what is counted during each of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from support.dangerous_model import write_dangerous_model
from support.examination import Examination
from support.tally import Tally
from support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from support.patient import Patient

__all__ = ["dangerous_model", "examine", "patient_model", "seed", "tally"]

_TALLY = pytest.StashKey[Tally]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Have each report carry what was counted, whatever became of the test."""
    report = yield
    item.stash.setdefault(_TALLY, Tally()).write_on(report)
    return report


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """What is counted during this fault."""
    found: Tally = request.node.stash.setdefault(_TALLY, Tally())
    return found


@pytest.fixture(scope="session")
def seed() -> int:
    """What all requests are drawn by; ``FAULT_SEED`` replays a run."""
    return int(os.environ["FAULT_SEED"])


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


@pytest.fixture(scope="session")
def patient_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a window so long that no answer fills it within a test."""
    return write_tiny_model(tmp_path_factory.mktemp("long"), context_length=65536)
