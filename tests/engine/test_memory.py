"""The ledger at work: who waits for memory, and who gives way."""

from __future__ import annotations

import contextlib
import random
from dataclasses import replace
from multiprocessing import Pipe
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import pytest

from mlx_pharos.engine.protocol import (
    OUT_OF_MEMORY,
    Accepted,
    Cancel,
    Finish,
    FromEngine,
    Rejected,
    Submit,
    TokenPrompt,
    decode_from_engine,
)
from mlx_pharos.engine.worker.inbox import Inbox, Outbox
from mlx_pharos.engine.worker.meter import kv_bytes
from mlx_pharos.engine.worker.tokenizing import PromptEncoder
from mlx_pharos.resilience.ledger import BLOCK
from support.driven_engine import PROMPT, TOKENS, DrivenEngine, costs_of
from support.engine import GREEDY
from support.random_requests import submit_random

if TYPE_CHECKING:
    from mlx_pharos.engine.models.loading import LoadedModel


def _narrow(loaded: LoadedModel, rows: int, tokens: int) -> DrivenEngine:
    """Return an engine with memory for so many sequences of so many tokens, KV state alone."""
    costs = replace(costs_of(loaded), decode_row_bytes=0, chunk_token_bytes=0, chunk_pair_bytes=0.0)
    ledger = DrivenEngine(loaded, room=1 << 30, costs=costs).guard.ledger
    for row in range(rows):
        assert ledger.reserve(row, tokens)
    return DrivenEngine(loaded, room=ledger.reserved_bytes, costs=costs)


def _room_for(loaded: LoadedModel, rows: int, tokens: int) -> int:
    """Return what so many sequences of so many tokens are promised, with all that steps take."""
    ledger = DrivenEngine(loaded, room=1 << 34).guard.ledger
    for row in range(rows):
        assert ledger.reserve(row, tokens)
    return ledger.reserved_bytes


def test_what_has_no_memory_waits_and_is_served_in_turn(loaded: LoadedModel) -> None:
    """With room for two, six requests are served in their order, and nothing is kept."""
    engine = _narrow(loaded, 2, PROMPT + 2 * BLOCK)
    for request_id in range(1, 7):
        engine.submit(request_id, max_tokens=BLOCK)
    engine.step(1)
    assert 2 == engine.steps[-1].running
    engine.step(2000)
    finished = [event.id for event in engine.events if isinstance(event, Finish)]
    assert sorted(finished) == finished
    assert [["length"]] * 6 == [engine.ends(request_id) for request_id in range(1, 7)]
    assert 2 == max(step.running for step in engine.steps)
    assert (0, 0) == (engine.guard.ledger.reserved_bytes, len(engine.guard.ledger))


def test_who_gives_way_goes_on_with_the_same_tokens(
    loaded: LoadedModel, alone: dict[int, list[int]]
) -> None:
    """Answers grow beyond what fits: the youngest wait meanwhile, and no token differs."""
    engine = _narrow(loaded, 2, PROMPT + 2 * BLOCK)
    for request_id in (1, 2):
        engine.submit(request_id, max_tokens=TOKENS)
    engine.submit(3, max_tokens=5)
    engine.step(20_000)
    assert engine.guard.preemptions > 0
    assert [alone[1], alone[2], alone[3][:5]] == [engine.tokens(each) for each in (1, 2, 3)]
    assert [["length"]] * 3 == [engine.ends(each) for each in (1, 2, 3)]
    finished = [event.id for event in engine.events if isinstance(event, Finish)]
    assert 1 == finished[0]  # the oldest was never interrupted
    assert engine.steps[-1].figures.preemptions == engine.guard.preemptions


def test_an_answer_without_a_limit_ends_where_memory_does(loaded: LoadedModel) -> None:
    """It is not refused: the end of memory is the end of its window."""
    engine = _narrow(loaded, 1, 500)
    assert 500 <= engine.guard.largest_tokens < 500 + 2 * BLOCK
    engine.submit(1, max_tokens=0)
    engine.step(2000)
    assert ["length"] == engine.ends(1)
    assert engine.guard.largest_tokens - PROMPT == len(engine.tokens(1))


def _arrive(loaded: LoadedModel, engine: DrivenEngine, resumed: tuple[int, ...]) -> FromEngine:
    """Let request 1 be accepted or not, as one that has these tokens; return what the server is told."""
    submit = Submit(
        id=1,
        prompt=TokenPrompt(tuple(65 + (7 + place) % 50 for place in range(PROMPT))),
        sampling=GREEDY,
        n=1,
        max_tokens=TOKENS,
        stop=(),
        logprobs=False,
        top_logprobs=0,
        submitted_at=0.0,
        resumed=(resumed,) if resumed else (),
    )
    server, far = Pipe()
    with contextlib.closing(server):
        encoder = PromptEncoder(loaded.tokenizer, vocabulary_size=loaded.vocabulary_size)
        context = loaded.context_length
        inbox = Inbox(far, Outbox(far), encoder, engine.guard, context_length=context)
        inbox._take(submit)  # as its reading thread does
        for _ in range(2):
            engine.items.put(inbox.items.get(timeout=10))
        return decode_from_engine(server.recv_bytes())


def test_what_another_engine_has_begun_is_not_refused_for_its_size(
    loaded: LoadedModel, alone: dict[int, list[int]]
) -> None:
    """A new request of that size is an error of the request. One that goes on ends where memory does,
    and where not even a token more fits it is memory that was missing.
    """
    engine = _narrow(loaded, 1, 500)
    most = engine.guard.largest_tokens - PROMPT
    assert 65 < most < TOKENS - 10
    refused = _arrive(loaded, engine, ())
    assert isinstance(refused, Rejected)
    assert "too_large" == refused.code

    assert isinstance(_arrive(loaded, engine, tuple(alone[1][:65])), Accepted)
    engine.step(2000)
    assert ["length"] == engine.ends(1)
    assert alone[1][65:most] == engine.tokens(1)

    engine = _narrow(loaded, 1, 500)
    assert isinstance(_arrive(loaded, engine, tuple(alone[1][: most + 5])), Accepted)
    engine.step(2000)
    assert [OUT_OF_MEMORY] == engine.ends(1)
    assert engine.scheduler.idle


def test_cancelling_gives_back_what_was_promised(loaded: LoadedModel) -> None:
    """Waiting, running or having given way."""
    engine = _narrow(loaded, 2, PROMPT + 2 * BLOCK)
    for request_id in range(1, 5):
        engine.submit(request_id, max_tokens=TOKENS)
    engine.step(30)
    for request_id in range(1, 5):
        engine.items.put(Cancel(request_id))
    engine.step(10)
    assert [["cancelled"]] * 4 == [engine.ends(request_id) for request_id in range(1, 5)]
    assert (0, 0) == (engine.guard.ledger.reserved_bytes, len(engine.guard.ledger))
    assert engine.scheduler.idle


def test_requests_push_the_prompt_cache_aside(loaded: LoadedModel) -> None:
    """The cache has what no request needs, and gives it back at once."""
    engine = _narrow(loaded, 1, 900)
    for request_id in (1, 2):
        engine.submit(request_id, prompt=300, max_tokens=2)
    engine.step(100)
    assert 0 < engine.cache.size_bytes
    engine.submit(3, prompt=840, max_tokens=50)
    engine.step(1)
    assert 1 == engine.steps[-1].running
    assert engine.cache.size_bytes <= engine.guard.ledger.spare_bytes


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scarce", [False, True])
def test_measured_memory_stays_within_what_was_promised(
    loaded: LoadedModel, seed: int, *, scarce: bool
) -> None:
    """Over random requests that come and go: KV state never exceeds its price, nor the peak of a spell
    what was promised; nor is the highest promise beyond all measure. With the prompt cache off
    and on, with memory for all, and where some have to wait.
    """
    dice = random.Random(seed)
    room = _room_for(loaded, 1, 1800) if scarce else 1 << 30
    engine = DrivenEngine(loaded, room=room, cache_bytes=room * (seed % 3))
    due = [*range(1, 8)]
    mx.synchronize()
    while due or not engine.scheduler.idle or not engine.items.empty():
        if due and (len(due) > 4 or dice.random() < 0.1 or engine.scheduler.idle):
            submit_random(engine, dice, due.pop(0))
        if dice.random() < 0.01:
            engine.items.put(Cancel(dice.randint(1, 7)))
        engine.step(1)
        scheduler: Any = engine.scheduler
        _, allocated = kv_bytes(scheduler._runner.kv_layers())
        lengths = [len(each.known) + len(each.generated) for each in scheduler._running.values()]
        assert allocated <= engine.guard.ledger.costs.batch_bytes(lengths)
    assert bool(seed % 3) == bool(engine.cache.hits)
    spells = [step.figures for step in engine.steps if step.figures.predicted_bytes]
    for spell in spells:
        assert spell.measured_bytes <= spell.predicted_bytes
    most = max(spell.predicted_bytes for spell in spells)
    assert most <= 30 * max(spell.measured_bytes for spell in spells)
