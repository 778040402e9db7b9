"""Fixtures that every test may use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["tiny_model"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the tiny model with its defaults. Read-only: tests share it."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
