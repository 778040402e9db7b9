"""A burst that fills the ledger of a real engine process, and who comes after it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec

from mlx_pharos.engine.client import start_engine
from mlx_pharos.engine.protocol import TextPrompt
from mlx_pharos.resilience.errors import RefusedError
from support.engine import GREEDY, collect, engine_options

if TYPE_CHECKING:
    from pathlib import Path

    from mlx_pharos.engine.client import EngineClient
    from mlx_pharos.engine.protocol import Step

_LIMIT = 16 << 20
"""The tiny model takes half a megabyte; a request of the burst some of the rest."""
_BATCH, _QUEUE = 8, 8
_TOKENS = 120


def _ask(engine: EngineClient, prompt: str, max_tokens: int) -> int:
    """Return the tokens of the answer, -1 where it is refused."""
    try:
        generation = engine.submit(TextPrompt(prompt), GREEDY, max_tokens=max_tokens)
    except RefusedError:
        return -1
    with generation:
        return len(collect(generation).tokens())


def _seconds_until_served(engine: EngineClient) -> float:
    """Return how long a small request takes that comes again at once where it is refused."""
    begin = time.monotonic()
    while _ask(engine, "small", 3) < 0:
        assert time.monotonic() - begin < 10
    return time.monotonic() - begin


def test_after_a_burst_that_filled_everything_a_small_request_is_served_soon(
    tiny_model: Path,
) -> None:
    """Of the burst some wait for memory while places are free, some are refused, and the rest have all
    of their answers; within five seconds of its end a small request has been served.
    """
    options = engine_options(tiny_model, max_batch=_BATCH)
    steps: list[Step] = []
    engine = start_engine(
        msgspec.structs.replace(options, memory_limit_bytes=_LIMIT),
        max_batch=_BATCH,
        max_queue=_QUEUE,
    )
    try:
        assert engine.wait_ready(15), engine.down_reason
        engine.on_step = steps.append
        with ThreadPoolExecutor(40) as pool:
            asked = [pool.submit(_ask, engine, "a" * (700 + i), _TOKENS) for i in range(40)]
            answers = [each.result(18) for each in asked]
        assert _seconds_until_served(engine) < 5
    finally:
        engine.close()
    served, refused = answers.count(_TOKENS), answers.count(-1)
    assert (40, 0) == (served + refused, engine.restarts)
    assert served >= _BATCH + _QUEUE
    assert refused > 0
    # Memory was what they waited for: the batch had places.
    assert max(step.running for step in steps) < _BATCH
    fullest = max(step.figures.ledger_reserved_bytes for step in steps)
    assert fullest <= steps[-1].figures.ledger_limit_bytes < 2 * fullest
    assert (0, 0) == (steps[-1].running, steps[-1].figures.ledger_reserved_bytes)
