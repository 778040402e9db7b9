"""The scheduler when memory is missing: what is freed, what begins again, and when it is the end."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from mlx_pharos.engine.protocol import OUT_OF_MEMORY
from mlx_pharos.engine.worker.memory_guard import is_allocation_failure
from support.driven_engine import SIZE, DrivenEngine, GreedyRunner

if TYPE_CHECKING:
    from mlx_pharos.engine.models.loading import LoadedModel

_RUNGS = ["buffer_cache", "prompt_cache", "shrink", "requeue", "refuse"]
"""In the order in which they are promised to be taken."""


def test_after_an_allocation_failed_everything_goes_on(
    loaded: LoadedModel, alone: dict[int, list[int]]
) -> None:
    """What nobody uses is freed, the prompt cache is given up, the runner shrinks, each step
    measured; then what ran begins again, once, and its tokens are those of an undisturbed run.
    """
    engine = DrivenEngine(loaded, room=1 << 24)
    engine.submit(6, max_tokens=20)
    engine.step(1000)
    assert 1 == engine.steps[-1].prompt_cache_entries
    for request_id in (1, 2, 3):
        engine.submit(request_id, max_tokens=100)
    engine.step(50)
    GreedyRunner.failures = 1
    engine.step(1)
    assert 0 == len(engine.cache)
    assert (0, 1) == (engine.cache.evictions, engine.cache.memory_evictions)
    assert (32, 4) == (engine.guard.size.prefill_step, engine.guard.size.batch)
    engine.step(1)
    assert engine.guard.size == engine.scheduler._runner.size
    engine.step(2000)
    assert 1 == engine.steps[-1].figures.prompt_cache_memory_evictions
    assert 3 == engine.steps[-1].figures.preemptions
    assert ["buffer_cache", "prompt_cache", "shrink"] == [each.action for each in engine.reclaims]
    assert all(each.before_bytes > 0 and each.after_bytes > 0 for each in engine.reclaims)
    for request_id in (1, 2, 3):
        assert alone[request_id][:100] == engine.tokens(request_id)
        assert ["length"] == engine.ends(request_id)


def test_a_request_that_fails_twice_ends_and_new_work_is_refused_for_a_moment(
    loaded: LoadedModel,
) -> None:
    """The guard does not wedge itself: after a quiet time new work is taken, at full size later."""
    engine = DrivenEngine(loaded, room=1 << 24)
    engine.submit(1, max_tokens=100)
    engine.step(5)
    GreedyRunner.failures = 2
    engine.step(3)
    assert [OUT_OF_MEMORY] == engine.ends(1)
    assert 1 == engine.guard.preemptions  # it went back once, and ended the second time
    assert "refuse" == engine.reclaims[-1].action
    assert 0 < engine.guard.retry_seconds <= 3  # well within five, for those who come then
    engine.clock.now += 3
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
    engine = DrivenEngine(loaded, room=1 << 24)
    for request_id in range(1, 10):
        engine.submit(request_id, max_tokens=100)
    GreedyRunner.failures = 100
    with pytest.raises(MemoryError):
        engine.step(20)
    assert _RUNGS == [each.action for each in engine.reclaims]


def test_pressure_from_outside_is_met_before_anything_fails(
    loaded: LoadedModel, alone: dict[int, list[int]]
) -> None:
    """Where the machine runs short, for good, the ladder is climbed step by step; one sequence after
    the other goes on, and all end as they would have.
    """
    free = [1 << 40]
    engine = DrivenEngine(loaded, room=1 << 24, headroom=lambda: free[0])
    for request_id in (1, 2, 3):
        engine.submit(request_id, max_tokens=100)
    engine.step(50)
    free[0] = 0
    for _ in range(6):
        engine.clock.now += 1
        engine.step(1)
    actions = [each.action for each in engine.reclaims]
    assert len(actions) >= len(_RUNGS)
    assert [action for action, _ in zip(itertools.cycle(_RUNGS), actions)] == actions
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
    engine = DrivenEngine(loaded, room=1 << 24)
    engine.guard.start_smaller(3)
    for request_id in (1, 2, 3):
        engine.submit(request_id, max_tokens=300)
    running = []
    for _ in range(3):
        engine.step(10)
        running.append(engine.steps[-1].running)
        engine.clock.now += 31
    assert [1, 2, 3] == running


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


@pytest.mark.parametrize("pause", [0, 4, 600])
def test_failures_without_a_success_between_end_the_engine(
    loaded: LoadedModel, pause: float
) -> None:
    """However much time passes: a process that gets no memory serves nobody, and another would."""
    engine = DrivenEngine(loaded, room=1 << 24)
    GreedyRunner.failures = 100
    for request_id in (1, 2):
        engine.submit(request_id, max_tokens=5)
        engine.step(1)
        engine.clock.now += pause
    engine.submit(3, max_tokens=5)
    with pytest.raises(MemoryError):
        engine.step(1)


def test_failures_with_a_success_between_do_not(loaded: LoadedModel) -> None:
    """Each is met as the first was."""
    engine = DrivenEngine(loaded, room=1 << 24)
    for request_id in range(1, 9):
        GreedyRunner.failures = 1
        engine.submit(request_id, max_tokens=5)
        engine.step(50)
        assert ["length"] == engine.ends(request_id)
        engine.clock.now += 4
