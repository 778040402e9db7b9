"""Models whose layers do not keep every token: windows, chunks, recurrent state, and mixtures.

The truth is mlx-lm's own generation of one sequence. The whole scheduler is
driven in this process; a real engine process is killed for one model of each sort.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import ArraysCache

from mlx_pharos.engine.client import start_engine
from mlx_pharos.engine.engine_state import Endurance
from mlx_pharos.engine.models.loading import load_model
from mlx_pharos.engine.protocol import Cancel, Delta, Finish, Sampling, Step, TokenPrompt
from mlx_pharos.engine.worker.meter import kv_bytes
from mlx_pharos.engine.worker.prompt_cache import PromptCache
from mlx_pharos.engine.worker.runner import StoredPrefix
from mlx_pharos.resilience.restarts import RestartPolicy
from support.driven_engine import SIZE, DrivenEngine
from support.engine import GREEDY, collect, engine_options
from support.kinds_of_model import KINDS, WINDOW, write_kind
from support.memory import measured_costs
from support.random_requests import submit_random

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlx_pharos.engine.client import EngineClient
    from mlx_pharos.engine.models.loading import LoadedModel
    from mlx_pharos.resilience.ledger import MemoryCosts
    from support.engine import Answer

_SEEDED = Sampling(temperature=0.9, top_p=0.95, seed=1234567)


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    return {kind: write_kind(folder / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module", params=KINDS)
def served(request: pytest.FixtureRequest, directories: dict[str, Path]) -> LoadedModel:
    """Each of them in this process. Read-only: tests share it."""
    return load_model(directories[request.param])


@pytest.fixture(scope="module")
def costs(served: LoadedModel) -> MemoryCosts:
    """What it costs."""
    return measured_costs(served, step=SIZE.prefill_step, batchable=served.batchable)


@pytest.fixture
def driven(
    served: LoadedModel, costs: MemoryCosts, caplog: pytest.LogCaptureFixture
) -> Iterator[DrivenEngine]:
    """An engine with memory for all, which has nothing to warn of."""
    engine = DrivenEngine(served, room=1 << 30, costs=costs)
    yield engine
    assert engine.scheduler.idle
    assert 0 == engine.guard.ledger.reserved_bytes
    assert [] == [each.message for each in caplog.records if each.levelno >= logging.WARNING]


def _prompt(seed: int, length: int) -> list[int]:
    dice = random.Random(seed)
    return [dice.randrange(0x20, 0x7F) for _ in range(length)]


def _alone(served: LoadedModel, prompt: list[int], max_tokens: int) -> list[int]:
    """What mlx-lm generates without Pharos."""
    steps = generate_step(
        mx.array(prompt),
        served.model,
        max_tokens=max_tokens,
        prefill_step_size=SIZE.prefill_step,
        stream=mx.default_stream(mx.default_device()),
    )
    return [cast("int", token) for token, _ in steps]


def test_how_a_model_may_be_run_is_found_when_it_is_loaded(served: LoadedModel) -> None:
    """By its caches and by trying: most are batched and filled up."""
    kind = served.model.model_type
    assert (kind not in {"llama4", "afm7"}) == served.batchable
    assert (kind not in {"llama4", "afm7", "mamba"}) == served.paddable


def test_requests_have_the_text_that_they_have_alone(
    served: LoadedModel, driven: DrivenEngine
) -> None:
    """Six that come at different times, some in one prefill; prompts and answers pass the window."""
    lengths = (5, 70, WINDOW + 1, 17, 90, WINDOW)
    prompts = {number: _prompt(number, length) for number, length in enumerate(lengths, 1)}
    for number, prompt in prompts.items():
        driven.submit(number, prompt=prompt, max_tokens=10 + 5 * number % 17)
        driven.step(number % 3 * 3)
    driven.step(1000)
    most = max(step.running for step in driven.steps)
    assert most == 1 if not served.batchable else most >= 4
    for number, prompt in prompts.items():
        answer = driven.tokens(number)
        assert 10 <= len(answer)
        assert _alone(served, prompt, len(answer)) == answer


def test_the_prompt_cache_changes_no_text(served: LoadedModel, driven: DrivenEngine) -> None:
    """A prompt that goes on where an answer ended, before and after the window is full; one that
    leaves it half-way; the same again; and several choices, which share their prompt.
    """
    first = _prompt(7, 30)
    driven.submit(1, prompt=first, max_tokens=6)
    driven.step(100)
    conversation = first + driven.tokens(1) + _prompt(8, 20)
    later = [
        conversation,
        first[:24] + _prompt(9, 10),
        conversation + _prompt(10, 40),
        conversation + _prompt(11, 9),
        conversation[:50],
        first,
    ]
    for number, prompt in enumerate(later, 2):
        driven.submit(number, prompt=prompt, max_tokens=5)
        driven.step(100)
        assert _alone(served, prompt, 5) == driven.tokens(number)
    driven.submit(20, prompt=later[2], max_tokens=5, n=3)
    driven.step(100)
    expected = _alone(served, later[2], 5)
    assert [expected] * 3 == [driven.tokens(20, choice) for choice in range(3)]
    cached = {each.id: each.cached_tokens for each in driven.events if isinstance(each, Finish)}
    assert 35 <= cached[2] <= 36  # the first answer, whatever the kind
    # Of an entry that left a chunk behind nothing is used, and it took its beginnings' place.
    assert (served.model.model_type != "llama4") == bool(cached[4])


def test_choices_seeds_stops_and_cancels_leave_the_others_alone(
    served: LoadedModel, driven: DrivenEngine
) -> None:
    """What ends early, in prefill or decode, and what is drawn in company."""
    kept = _prompt(1, 60)
    text = bytes(_alone(served, kept, 30)).decode()
    driven.submit(1, prompt=kept, max_tokens=30)
    driven.submit(2, prompt=_prompt(2, 200), max_tokens=30)
    driven.submit(3, prompt=_prompt(3, 20), max_tokens=12, n=3, sampling=_SEEDED)
    driven.step(4)
    driven.items.put(Cancel(2))
    driven.submit(4, prompt=kept, max_tokens=30, stop=(text[17:20],))
    driven.submit(5, prompt=_prompt(5, 90), max_tokens=30)
    driven.step(12)
    driven.items.put(Cancel(5))
    driven.step(1000)
    assert text == driven.text(1)
    assert [["cancelled"], ["cancelled"]] == [driven.ends(2), driven.ends(5)]
    assert ["stop"] == driven.ends(4)
    assert text.split(text[17:20], maxsplit=1)[0] == driven.text(4)
    drawn = [driven.tokens(3, choice) for choice in range(3)]
    driven.submit(6, prompt=_prompt(3, 20), max_tokens=12, n=3, sampling=_SEEDED)
    driven.step(1000)
    assert drawn == [driven.tokens(6, choice) for choice in range(3)]


def test_measured_memory_stays_within_what_was_promised(
    served: LoadedModel, costs: MemoryCosts
) -> None:
    """Over random requests: state never exceeds its price, nor the peak of a spell the promise."""
    dice = random.Random(int(os.environ.get("FAULT_SEED", "1")))
    engine = DrivenEngine(served, room=1 << 30, costs=costs)
    due = [*range(1, 4)]
    mx.synchronize()
    while due or not engine.scheduler.idle or not engine.items.empty():
        if due and (len(due) > 1 or dice.random() < 0.1 or engine.scheduler.idle):
            submit_random(engine, dice, due.pop(0))
        engine.step(1)
        scheduler: Any = engine.scheduler
        _, allocated = kv_bytes(scheduler._runner.kv_layers())
        lengths = [len(each.known) + len(each.generated) for each in scheduler._running.values()]
        assert allocated <= costs.batch_bytes(lengths)
    spells = [step.figures for step in engine.steps if step.figures.predicted_bytes]
    assert spells
    for spell in spells:
        assert spell.measured_bytes <= spell.predicted_bytes


def test_an_entry_of_recurrent_state_holds_what_it_counts() -> None:
    """mlx-lm hands out a view of the whole batch: kept as it is, it would keep the others' state."""
    cache = PromptCache(limit_bytes=1 << 30)
    mx.synchronize()
    before = mx.get_active_memory()
    batch: Any = ArraysCache(2)
    batch.cache = [mx.random.normal((8, 3, 5000)), mx.random.normal((8, 40, 40))]
    cache.store(StoredPrefix(_prompt(1, 20), [batch.extract(3)]))
    expected = batch.cache[1][3].tolist()
    del batch
    assert 0 < cache.size_bytes <= mx.get_active_memory() - before <= 2 * cache.size_bytes
    found = cache.lookup([*_prompt(1, 20), 65])
    assert found is not None
    assert expected == found.cache[0][1][0].tolist()


@pytest.mark.timeout(60)  # an engine starts twice
@pytest.mark.parametrize("kind", ["gemma3_text", "falcon_h1"])
def test_a_killed_engine_loses_no_token(directories: dict[str, Path], kind: str) -> None:
    """Rotated windows and recurrent state are computed anew from the tokens: the same text."""
    engine = start_engine(
        engine_options(directories[kind], max_batch=4, prefill_step=64),
        max_batch=4,
        max_queue=8,
        restarts=RestartPolicy(limit=9, first_delay_seconds=0.01, longest_delay_seconds=0.01),
        endurance=Endurance(crash_budget=9),
    )
    try:
        assert engine.wait_ready(30), engine.down_reason
        undisturbed = _run(engine)
        seen = _Killer(engine)
        engine.on_step = seen
        disturbed = _run(engine)
        assert [
            each.tokens(choice) for each in undisturbed for choice in sorted(each.finishes)
        ] == [each.tokens(choice) for each in disturbed for choice in sorted(each.finishes)]
        assert 1 == max(len(answer.resumptions) for answer in disturbed)
        assert (0, 0, 0, 0) == seen.cache_errors
    finally:
        engine.close()


class _Killer:
    """Kills the engine once, early: all that a short answer lacks could be in the pipe already."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine
        self._left = 12
        self.cache_errors: tuple[int, ...] = ()

    def __call__(self, step: Step) -> None:
        """Look at a step, in the reader thread."""
        self.cache_errors = step.figures.prompt_cache_health.errors
        before = self._left
        self._left -= sum(isinstance(event, Delta) for event in step.events)
        if self._left <= 0 < before:
            os.kill(self._engine.pid, signal.SIGKILL)


def _run(engine: EngineClient) -> list[Answer]:
    """Let three requests run together, two of them past the window, one with two choices."""
    asked: list[tuple[int, Sampling, int]] = [(30, GREEDY, 1), (70, GREEDY, 1), (9, _SEEDED, 2)]
    answers: list[Answer] = []

    def gather(number: int) -> None:
        length, sampling, n = asked[number]
        prompt = TokenPrompt(tuple(_prompt(number, length)))
        with engine.submit(prompt, sampling, max_tokens=150, n=n) as generation:
            found[number] = collect(generation, n=n)

    found: dict[int, Answer] = {}
    threads = [threading.Thread(target=gather, args=(number,)) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
        assert not thread.is_alive()
    answers += [found[number] for number in sorted(found)]
    assert len(asked) == len(answers)
    return answers
