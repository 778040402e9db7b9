"""Fixtures that every test may use."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from support.tally import summary
from support.tiny_model import write_tiny_model

__all__ = ["starter_model", "tiny_model"]

_CACHE = os.environ.get("PHAROS_TEST_CACHE") or os.environ.get("PHAROS_CACHE_DIR")

# No setting of the person who runs the tests reaches a test, nor a server that one starts.
for _name in [*os.environ]:
    if _name.startswith(("PHAROS_", "OTEL_")) or _name == "METRICS_API_KEY":
        del os.environ[_name]

# One for all processes that tests run in, so that the seed of the last line replays the run. Always the
# same one by default: of other requests, a token here and there is a draw that rounding decides.
os.environ.setdefault("FAULT_SEED", "1")

# How long an example takes is the machine's affair; each test has its timeout.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# A shell lets what runs in its background ignore Ctrl-C, and every process inherits that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the faults did, with two tests at a time too: here all reports come together."""
    reports = [each for some in terminalreporter.stats.values() for each in some]
    if line := summary(each for each in reports if isinstance(each, pytest.TestReport)):
        terminalreporter.write_line(f"{line} (FAULT_SEED={os.environ['FAULT_SEED']})")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the tiny model with its defaults. Read-only: tests share it."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def starter_model() -> Path:
    """The directory of the starter model, if it has been pulled; tests that need it skip if not.

    Looked for in ``PHAROS_TEST_CACHE``, else in the cache directory that ``pharos
    pull`` writes to. Nothing is fetched: ``pharos pull starter`` does that.
    """
    from mlx_pharos.engine.models.source import classify, resolve_local
    from mlx_pharos.engine.models.store import Store
    from mlx_pharos.settings import default_cache_dir

    directory = resolve_local(
        classify("starter"), Store(Path(_CACHE or default_cache_dir()).expanduser())
    )
    if directory is None:
        pytest.skip("the starter model is not on this machine: pharos pull starter")
    return directory
