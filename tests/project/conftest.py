"""Fixtures of the tests of commands and settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.served import Served, serve_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["served"]


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in an empty directory, with a cache of its own."""
    monkeypatch.setenv("PHAROS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def served(tiny_model: Path) -> Iterator[Served]:
    """Serve the tiny model under the starter's name, with short answers."""
    flags = ["--served-model-name", "starter", "--max-tokens", "40"]
    with serve_model(tiny_model, *flags) as running:
        yield running
