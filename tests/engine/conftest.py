"""An engine process, and the model in this process, for the tests of this folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mlx_pharos.engine.client import EngineClient, start_engine
from mlx_pharos.engine.models.loading import LoadedModel, load_model
from support.driven_engine import TOKENS, DrivenEngine
from support.engine import engine_options

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["alone", "engine", "loaded"]


@pytest.fixture(scope="session")
def engine(tiny_model: Path) -> Iterator[EngineClient]:
    """A running engine with the tiny model: 4 places in the batch, 4 in the queue."""
    options = engine_options(tiny_model, max_batch=4, prefill_step=256)
    client = start_engine(options, max_batch=4, max_queue=4)
    assert client.wait_ready(15), client.down_reason
    yield client
    client.close()


@pytest.fixture(scope="session")
def loaded(tiny_model: Path) -> LoadedModel:
    """The tiny model in this process. Read-only: tests share it."""
    return load_model(tiny_model)


@pytest.fixture(scope="session")
def alone(loaded: LoadedModel) -> dict[int, list[int]]:
    """What each request of a driven engine generates where memory is plenty."""
    engine = DrivenEngine(loaded, room=1 << 30)
    for request_id in range(1, 4):
        engine.submit(request_id, max_tokens=TOKENS)
    engine.step(5000)
    return {request_id: engine.tokens(request_id) for request_id in range(1, 4)}
