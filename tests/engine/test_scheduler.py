"""The scheduler when a step of the runner fails."""

from __future__ import annotations

import gc
import queue
import weakref
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from mlx_pharos.engine.protocol import (
    Cancel,
    Delta,
    Failed,
    Finish,
    FromEngine,
    Started,
    Step,
    StepEvent,
    Submit,
    TokenPrompt,
)
from mlx_pharos.engine.worker.batch import BatchRunner
from mlx_pharos.engine.worker.inbox import Arrived, Closed, InboxItem, Prepared, Withdrawn
from mlx_pharos.engine.worker.prompt_cache import PromptCache
from mlx_pharos.engine.worker.runner import RunnerSize
from mlx_pharos.engine.worker.scheduler import Scheduler
from mlx_pharos.engine.worker.sequential import SequentialRunner
from mlx_pharos.engine.worker.vocabulary import Vocabulary
from support.engine import GREEDY
from support.memory import make_guard

if TYPE_CHECKING:
    from mlx_pharos.engine.models.loading import LoadedModel
    from mlx_pharos.engine.worker.runner import RunnerStep


class _FailingRunner(BatchRunner):
    """A real runner whose step fails when it is told to, as a model's code does."""

    failures = 0

    def step(self) -> RunnerStep:
        if _FailingRunner.failures:
            _FailingRunner.failures -= 1
            message = "[matmul] shapes do not match"
            raise RuntimeError(message)
        return super().step()


class _Pipe:
    """Keeps what the scheduler sends."""

    def __init__(self) -> None:
        self.events: list[StepEvent] = []
        self.steps: list[Step] = []
        self.started: list[Started] = []

    def send(self, message: FromEngine) -> None:
        if isinstance(message, Started):
            self.started.append(message)
            return
        assert isinstance(message, Step)
        self.steps.append(message)
        self.events += message.events

    def of(self, request_id: int, kind: type[Any]) -> list[Any]:
        return [e for e in self.events if e.id == request_id and isinstance(e, kind)]


class _Bench:
    """A scheduler with the tiny model, driven step by step in the test's thread."""

    def __init__(self, loaded: LoadedModel, *, sequential: bool = False) -> None:
        self.items: queue.SimpleQueue[InboxItem] = queue.SimpleQueue()
        self.pipe = _Pipe()
        prompt_cache = PromptCache(limit_bytes=1 << 20)
        size = RunnerSize(batch=1 if sequential else 2, prefill_step=64, prefill_rows=2)
        self.scheduler = Scheduler(
            lambda: (
                SequentialRunner(loaded.model, eos_token_ids=(), prefill_step=16)
                if sequential
                else _FailingRunner(
                    loaded.model,
                    eos_token_ids=(),
                    size=size,
                    wired_limit=False,
                )
            ),
            prompt_cache,
            make_guard(loaded, prompt_cache, size),
            Vocabulary(loaded.tokenizer),
            context_length=loaded.context_length,
            vocabulary_size=loaded.vocabulary_size,
            inbox=self.items,
            outbox=self.pipe,  # type: ignore[arg-type]
        )

    def submit(self, request_id: int, **fields: Any) -> None:
        self.items.put(Arrived(request_id))
        self.items.put(self.prepared(request_id, **fields))

    def tokens(self, request_id: int) -> list[int]:
        return [delta.tokens[0] for delta in self.pipe.of(request_id, Delta)]

    def prepared(
        self, request_id: int, *, n: int = 1, max_tokens: int = 10, tokens: list[int] | None = None
    ) -> Prepared:
        tokens = tokens or [65 + request_id] * 30
        submit = Submit(
            id=request_id,
            prompt=TokenPrompt(tuple(tokens)),
            sampling=GREEDY,
            n=n,
            max_tokens=max_tokens,
            stop=(),
            logprobs=False,
            top_logprobs=0,
            submitted_at=0.0,
        )
        return Prepared(submit, tokens, 0.0)

    def step(self, times: int = 1) -> None:
        """Step, unless the scheduler would wait for ever."""
        for _ in range(times):
            if self.scheduler.idle and self.items.empty():
                return
            self.scheduler.step()


@pytest.fixture
def bench(loaded: LoadedModel) -> _Bench:
    """A fresh scheduler."""
    return _Bench(loaded)


def test_what_a_failed_step_interrupted_goes_on(bench: _Bench) -> None:
    """Once is an accident: nobody is told, and the tokens are those of an undisturbed run."""
    for request_id in (1, 2, 3):
        bench.submit(request_id)
    bench.step(4)
    assert bench.pipe.of(1, Delta)
    _FailingRunner.failures = 1
    bench.step(60)
    figures = [step.figures for step in bench.pipe.steps]
    assert all(each.seconds > 0 for each in figures if each.batch_size)  # no step of 0 s
    disturbed = [bench.tokens(request_id) for request_id in (1, 2, 3)]
    for request_id in (1, 2, 3):
        assert not bench.pipe.of(request_id, Failed)
        assert 1 == len(bench.pipe.of(request_id, Finish))
        bench.submit(request_id + 10, tokens=[65 + request_id] * 30)
        bench.step(60)
    assert disturbed == [bench.tokens(request_id + 10) for request_id in (1, 2, 3)]


def test_the_state_of_a_failed_step_is_gone_at_once(bench: _Bench) -> None:
    """Also where the collector never looks at the runner that failed, as it was made at start."""
    for request_id in (1, 2):
        bench.submit(request_id)
    bench.step(3)
    layers = [weakref.ref(layer) for layer in bench.scheduler._runner.kv_layers()]
    assert layers
    gc.disable()
    try:
        _FailingRunner.failures = 1
        bench.step()
        assert not [layer for layer in layers if layer() is not None]
    finally:
        gc.enable()
    bench.submit(3)
    bench.step(30)
    assert 1 == len(bench.pipe.of(3, Finish))


def test_failed_request_ends_with_all_its_choices(bench: _Bench) -> None:
    """Choices that waited for the first one do not stay behind."""
    bench.submit(1, n=3)
    bench.step()
    _FailingRunner.failures = 2
    bench.step(3)
    assert (1, 0) == (len(bench.pipe.of(1, Failed)), len(bench.pipe.of(1, Finish)))
    assert 0 == bench.pipe.steps[-1].running
    assert bench.scheduler.idle


def test_cancel_before_tokenizing_ended_is_not_lost(bench: _Bench) -> None:
    """The request is finished as cancelled as soon as it arrives, once per choice."""
    bench.items.put(Arrived(1))
    bench.items.put(Cancel(1))
    bench.items.put(bench.prepared(1, n=2))
    bench.step()
    assert ["cancelled"] * 2 == [finish.reason for finish in bench.pipe.of(1, Finish)]
    assert not bench.pipe.of(1, Delta)


def test_cancel_of_what_is_over_or_unknown_is_ignored(bench: _Bench) -> None:
    """A cancellation that crosses the end on the wire does no harm."""
    bench.submit(1, max_tokens=2)
    bench.step(6)
    bench.items.put(Arrived(2))
    bench.items.put(Withdrawn(2))
    bench.items.put(Cancel(1))
    bench.items.put(Cancel(2))
    bench.items.put(Cancel(99))
    bench.submit(3, max_tokens=2)
    bench.step(6)
    assert [1, 0, 1] == [len(bench.pipe.of(request_id, Finish)) for request_id in (1, 2, 3)]


def test_resumed_sequence_that_is_past_its_bound_ends_with_its_next_token(bench: _Bench) -> None:
    """An engine with more room got further than this one would have let it."""
    prepared = bench.prepared(1, n=2, max_tokens=3)
    submit = msgspec.structs.replace(
        prepared.submit, resumed=((70, 71, 72, 73, 74), tuple(range(70, 90))), ended=(1,)
    )
    bench.items.put(Arrived(1))
    bench.items.put(Prepared(submit, prepared.tokens, 0.0))
    bench.step(20)
    assert 1 == len(bench.pipe.of(1, Delta))
    (finish,) = bench.pipe.of(1, Finish)
    assert (0, "length", 6) == (finish.choice, finish.reason, finish.completion_tokens)


def test_run_ends_with_the_pipe(bench: _Bench) -> None:
    """Also while a request runs."""
    bench.submit(1, max_tokens=5000)
    bench.step(3)
    bench.items.put(Closed())
    bench.scheduler.run()
    assert not bench.pipe.of(1, Finish)


@pytest.mark.parametrize("sequential", [False, True])
def test_choices_and_later_requests_get_the_same_greedy_text(
    loaded: LoadedModel, *, sequential: bool
) -> None:
    """What is stored while the first choice goes on stays what it was, with either runner."""
    bench = _Bench(loaded, sequential=sequential)
    bench.submit(1, n=3, max_tokens=12)
    bench.step(100)
    bench.submit(1, max_tokens=12)
    bench.step(100)
    texts = [
        [delta.tokens[0] for delta in bench.pipe.of(1, Delta) if delta.choice == choice]
        for choice in range(3)
    ]
    assert texts[0] == texts[0][:12] + texts[0][:12]
    assert texts[1] == texts[2] == texts[0][:12]


@pytest.mark.parametrize("sequential", [False, True])
def test_a_conversation_goes_on_from_the_stored_answer(
    loaded: LoadedModel, *, sequential: bool
) -> None:
    """The state of a finished answer is found by the prompt that continues it."""
    bench = _Bench(loaded, sequential=sequential)
    bench.submit(1, max_tokens=20)
    bench.step(100)
    answer = [delta.tokens[0] for delta in bench.pipe.of(1, Delta)]
    first = bench.prepared(1)
    more = bench.prepared(2, max_tokens=3)
    tokens = [*first.tokens, *answer, 70, 71]
    bench.items.put(Arrived(2))
    bench.items.put(Prepared(more.submit, tokens, 0.0))
    bench.step(100)
    (finish,) = bench.pipe.of(2, Finish)
    assert finish.cached_tokens >= len(first.tokens) + len(answer) - 1


@pytest.mark.parametrize(("failures", "expected"), [(1, (0, 1)), (2, (1, 0))])
def test_request_that_cannot_be_started_fails_alone(
    bench: _Bench, monkeypatch: pytest.MonkeyPatch, failures: int, expected: tuple[int, int]
) -> None:
    """What is wrong with one request's state ends that request, when it is so twice; not the engine."""
    bench.submit(1)
    bench.step(3)
    insert = _FailingRunner.insert
    left = [None] * failures

    def fail(runner: _FailingRunner, job: Any) -> int:
        if left:
            left.pop()
            message = "[matmul] shapes do not match"
            raise RuntimeError(message)
        return insert(runner, job)

    monkeypatch.setattr(_FailingRunner, "insert", fail)
    bench.submit(2)
    bench.submit(3)
    bench.step(60)
    assert [0, expected[0], 0] == [len(bench.pipe.of(each, Failed)) for each in (1, 2, 3)]
    assert [1, expected[1], 1] == [len(bench.pipe.of(each, Finish)) for each in (1, 2, 3)]
    assert "matmul" not in "".join(each.reason for each in bench.pipe.of(2, Failed))


def test_steps_carry_what_was_measured(bench: _Bench) -> None:
    """A step tells its time, its batch, MLX's memory, and the KV state that is reserved and used;
    when nothing runs no KV state is left.
    """
    bench.submit(1, max_tokens=20)
    bench.step(5)
    figures = bench.pipe.steps[-1].figures
    assert 1 == figures.batch_size
    assert 0 < figures.seconds < 5
    assert 0 < figures.kv_used_bytes < figures.kv_reserved_bytes
    assert 0 < figures.mlx_active_bytes <= figures.mlx_peak_bytes
    bench.step(40)
    last = bench.pipe.steps[-1]
    assert (0, 0, 0) == (last.running, last.figures.kv_used_bytes, last.figures.kv_reserved_bytes)
