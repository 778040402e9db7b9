"""The scheduler when memory runs short: who waits, who gives way, what is freed."""

from __future__ import annotations

import queue
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import pytest

from mlx_pharos.engine.models.loading import LoadedModel, load_model
from mlx_pharos.engine.protocol import (
    OUT_OF_MEMORY,
    Cancel,
    Delta,
    Failed,
    Finish,
    FromEngine,
    Reclaim,
    Step,
    StepEvent,
    Submit,
    TokenPrompt,
)
from mlx_pharos.engine.worker.batch import BatchRunner
from mlx_pharos.engine.worker.inbox import Arrived, InboxItem, Prepared
from mlx_pharos.engine.worker.memory_guard import is_allocation_failure
from mlx_pharos.engine.worker.meter import kv_bytes
from mlx_pharos.engine.worker.prompt_cache import PromptCache
from mlx_pharos.engine.worker.runner import RunnerSize
from mlx_pharos.engine.worker.scheduler import Scheduler
from mlx_pharos.engine.worker.vocabulary import Vocabulary
from mlx_pharos.resilience.ledger import BLOCK
from support.engine import GREEDY
from support.memory import make_guard, measured_costs

if TYPE_CHECKING:
    from pathlib import Path

    from mlx_pharos.engine.worker.runner import RunnerStep
    from mlx_pharos.resilience.ledger import MemoryCosts

SIZE = RunnerSize(batch=8, prefill_step=64, prefill_rows=2)
PROMPT = 240
TOKENS = 530
"""Of the longest answers: their second growth takes another block of KV state."""


class _GreedyRunner(BatchRunner):
    """A real runner whose step asks the system for more memory than there is, when it is told to.

    The failure is the allocator's own. MLX's on the CPU cannot be used here: it
    ends the process.
    """

    failures = 0

    def step(self) -> RunnerStep:
        if _GreedyRunner.failures:
            _GreedyRunner.failures -= 1
            bytearray(1 << 60)
        return super().step()


_calibrated: list[MemoryCosts] = []


def _costs(loaded: LoadedModel) -> MemoryCosts:
    """Calibrate once: the figures differ a little from time to time, and rooms are reckoned in them."""
    if not _calibrated:
        _calibrated.append(measured_costs(loaded, step=SIZE.prefill_step))
    return _calibrated[0]


class _Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class _Engine:
    """A scheduler with the tiny model and so much memory, driven in the test's thread."""

    def __init__(self, loaded: LoadedModel, *, room: int, **guard: Any) -> None:
        _GreedyRunner.failures = 0
        self.items: queue.SimpleQueue[InboxItem] = queue.SimpleQueue()
        self.clock = _Clock()
        self.events: list[StepEvent] = []
        self.steps: list[Step] = []
        self.cache = PromptCache(limit_bytes=room)
        options: dict[str, Any] = {"headroom": lambda: 1 << 40, "clock": self.clock} | guard
        options.setdefault("costs", _costs(loaded))
        self.guard = make_guard(loaded, self.cache, SIZE, room=room, **options)
        self.scheduler = Scheduler(
            lambda: _GreedyRunner(loaded.model, eos_token_ids=(), size=SIZE, wired_limit=False),
            self.cache,
            self.guard,
            Vocabulary(loaded.tokenizer),
            context_length=loaded.context_length,
            vocabulary_size=loaded.vocabulary_size,
            inbox=self.items,
            outbox=self,  # type: ignore[arg-type]
        )
        self._accepted = 0

    def send(self, message: FromEngine) -> None:
        """Keep what a pipe would carry."""
        if isinstance(message, Step):
            self.steps.append(message)
            self.events += message.events

    def submit(self, request_id: int, *, prompt: int = PROMPT, max_tokens: int = 0) -> None:
        tokens = [65 + (request_id * 7 + place) % 50 for place in range(prompt)]
        submit = Submit(
            id=request_id,
            prompt=TokenPrompt(tuple(tokens)),
            sampling=GREEDY,
            n=1,
            max_tokens=max_tokens,
            stop=(),
            logprobs=False,
            top_logprobs=0,
            submitted_at=0.0,
        )
        self._accepted += 1
        self.items.put(Arrived(request_id))
        self.items.put(Prepared(submit, tokens, float(self._accepted)))

    def step(self, times: int) -> None:
        """Step so often, unless there is nothing to do; nothing is ever promised beyond the limit."""
        for _ in range(times):
            if self.scheduler.idle and self.items.empty():
                return
            self.scheduler.step()
            ledger = self.guard.ledger
            assert 0 <= ledger.reserved_bytes <= ledger.limit_bytes
            assert self.cache.size_bytes <= ledger.spare_bytes

    def tokens(self, request_id: int) -> list[int]:
        """What a request has generated."""
        return [
            token
            for event in self.events
            if isinstance(event, Delta) and event.id == request_id
            for token in event.tokens
        ]

    def ends(self, request_id: int) -> list[str]:
        """How a request ended: exactly one entry."""
        return [
            event.reason
            for event in self.events
            if isinstance(event, Finish | Failed) and event.id == request_id
        ]

    @property
    def reclaims(self) -> list[Reclaim]:
        """What the ladder did."""
        return [each for step in self.steps for each in step.figures.reclaims]


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> LoadedModel:
    """The tiny model in this process."""
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def alone(loaded: LoadedModel) -> dict[int, list[int]]:
    """What each request generates where memory is plenty."""
    engine = _Engine(loaded, room=1 << 30)
    for request_id in range(1, 4):
        engine.submit(request_id, max_tokens=TOKENS)
    engine.step(5000)
    return {request_id: engine.tokens(request_id) for request_id in range(1, 4)}


def _narrow(loaded: LoadedModel, rows: int, tokens: int) -> _Engine:
    """Return an engine with memory for so many sequences of so many tokens, KV state alone."""
    costs = replace(_costs(loaded), decode_row_bytes=0, chunk_token_bytes=0, chunk_pair_bytes=0.0)
    ledger = _Engine(loaded, room=1 << 30, costs=costs).guard.ledger
    for row in range(rows):
        assert ledger.reserve(row, tokens)
    return _Engine(loaded, room=ledger.reserved_bytes, costs=costs)


def test_what_has_no_memory_waits_and_is_served_in_turn(loaded: LoadedModel) -> None:
    """With room for two, six requests are served in their order, and nothing is kept."""
    engine = _narrow(loaded, 2, PROMPT + 2 * BLOCK)
    for request_id in range(1, 7):
        engine.submit(request_id, max_tokens=BLOCK)
    engine.step(1)
    assert (2, 4) == (engine.steps[-1].running, engine.steps[-1].waiting)
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


def test_after_an_allocation_failed_everything_goes_on(
    loaded: LoadedModel, alone: dict[int, list[int]]
) -> None:
    """What nobody uses is freed, the prompt cache is given up, the runner shrinks, each step
    measured; then what ran begins again, once, and its tokens are those of an undisturbed run.
    """
    engine = _Engine(loaded, room=1 << 24)
    engine.submit(6, max_tokens=20)
    engine.step(1000)
    assert 1 == engine.steps[-1].prompt_cache_entries
    for request_id in (1, 2, 3):
        engine.submit(request_id, max_tokens=100)
    engine.step(50)
    _GreedyRunner.failures = 1
    engine.step(1)
    assert 0 == len(engine.cache)
    assert (32, 4) == (engine.guard.size.prefill_step, engine.guard.size.batch)
    engine.step(2000)
    assert ["buffer_cache", "prompt_cache", "shrink"] == [each.action for each in engine.reclaims]
    assert all(each.before_bytes > 0 and each.after_bytes > 0 for each in engine.reclaims)
    for request_id in (1, 2, 3):
        assert alone[request_id][:100] == engine.tokens(request_id)
        assert ["length"] == engine.ends(request_id)


def test_a_request_that_fails_twice_ends_and_new_work_is_refused_for_a_moment(
    loaded: LoadedModel,
) -> None:
    """The guard does not wedge itself: after a quiet time new work is taken, at full size later."""
    engine = _Engine(loaded, room=1 << 24)
    engine.submit(1, max_tokens=100)
    engine.step(5)
    _GreedyRunner.failures = 2
    engine.step(3)
    assert [OUT_OF_MEMORY] == engine.ends(1)
    assert "refuse" == engine.reclaims[-1].action
    assert 0 < engine.guard.retry_seconds <= 5
    engine.clock.now += 5
    assert 0 == engine.guard.retry_seconds
    engine.submit(2, max_tokens=100)
    engine.step(200)
    assert ["length"] == engine.ends(2)
    assert SIZE != engine.guard.size
    engine.clock.now += 60
    engine.submit(3, max_tokens=10)
    engine.step(200)
    assert ["length"] == engine.ends(3)
    assert SIZE == engine.guard.size


def test_where_nothing_helps_the_engine_ends(loaded: LoadedModel) -> None:
    """Only after every step of the ladder; the server starts another and goes on there."""
    engine = _Engine(loaded, room=1 << 24)
    for request_id in range(1, 10):
        engine.submit(request_id, max_tokens=100)
    _GreedyRunner.failures = 100
    with pytest.raises(MemoryError):
        engine.step(20)
    assert {"buffer_cache", "prompt_cache", "shrink", "requeue", "refuse"} == {
        each.action for each in engine.reclaims
    }


def test_pressure_from_outside_is_met_before_anything_fails(
    loaded: LoadedModel, alone: dict[int, list[int]]
) -> None:
    """Where the machine runs short, for good, the ladder is climbed step by step; one sequence after
    the other goes on, and all end as they would have.
    """
    free = [1 << 40]
    engine = _Engine(loaded, room=1 << 24, headroom=lambda: free[0])
    for request_id in (1, 2, 3):
        engine.submit(request_id, max_tokens=100)
    engine.step(50)
    free[0] = 0
    for _ in range(6):
        engine.clock.now += 1
        engine.step(1)
    assert {"buffer_cache", "prompt_cache", "shrink", "requeue", "refuse"} == {
        each.action for each in engine.reclaims
    }
    assert 1 <= engine.steps[-1].running < 3
    assert engine.guard.retry_seconds > 0
    while not engine.scheduler.idle:
        engine.clock.now += 1
        engine.step(1)
    assert 0 == engine.guard.retry_seconds  # nothing runs whose end could be waited for
    for request_id in (1, 2, 3):
        assert alone[request_id][:100] == engine.tokens(request_id)


def test_an_engine_that_starts_smaller_grows_back(loaded: LoadedModel) -> None:
    """A batch of one at first, doubled after each spell without trouble; so is the cache's share."""
    engine = _Engine(loaded, room=1 << 24)
    engine.guard.start_smaller(3)
    for request_id in (1, 2, 3):
        engine.submit(request_id, max_tokens=300)
    running = []
    for _ in range(3):
        engine.step(10)
        running.append(engine.steps[-1].running)
        engine.clock.now += 31
    assert [1, 2, 3] == running


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


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("[metal::malloc] Unable to allocate 9 bytes."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("[metal] Insufficient Memory (0000008)"), True),
        (RuntimeError("[matmul] shapes do not match"), False),
        (ValueError("allocate"), False),
    ],
)
def test_an_allocation_failure_is_told_from_others(error: Exception, *, expected: bool) -> None:
    """By Python's own error, and by what MLX says on GPUs."""
    assert expected == is_allocation_failure(error)


@pytest.mark.parametrize("seed", range(4))
def test_measured_memory_stays_within_what_was_promised(loaded: LoadedModel, seed: int) -> None:
    """Over random requests: KV state never exceeds its price, and the peak of a spell lies between a
    tenth of what was promised and all of it.
    """
    dice = random.Random(seed)
    engine = _Engine(loaded, room=1 << 30, headroom=lambda: 1 << 40)
    engine.cache = PromptCache(limit_bytes=0)
    for request_id in range(1, 9):
        prompt = dice.choice([dice.randint(1, 60), dice.randint(1, 1500)])
        engine.submit(request_id, prompt=prompt, max_tokens=dice.randint(1, 200))
    mx.synchronize()
    while not engine.scheduler.idle or not engine.items.empty():
        engine.step(1)
        scheduler: Any = engine.scheduler
        _, allocated = kv_bytes(scheduler._runner.kv_layers())
        lengths = [len(each.known) + len(each.generated) for each in scheduler._running.values()]
        assert allocated <= engine.guard.ledger.costs.batch_bytes(lengths)
    (last,) = [step.figures for step in engine.steps if step.figures.predicted_bytes]
    assert last.measured_bytes <= last.predicted_bytes <= 10 * last.measured_bytes
