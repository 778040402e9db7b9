"""Fixtures of the tests of commands and settings."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in an empty directory, without settings of the person who runs the tests."""
    for name in list(os.environ):
        if name.startswith("PHAROS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PHAROS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
