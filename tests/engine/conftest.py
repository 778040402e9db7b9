"""An engine process for the tests of this folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mlx_pharos.engine.client import EngineClient, start_engine
from support.engine import engine_options

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["engine"]


@pytest.fixture(scope="session")
def engine(tiny_model: Path) -> Iterator[EngineClient]:
    """A running engine with the tiny model: 4 places in the batch, 4 in the queue."""
    options = engine_options(tiny_model, max_batch=4, prefill_step=256)
    client = start_engine(options, max_batch=4, max_queue=4)
    assert client.wait_ready(15), client.down_reason
    yield client
    client.close()
