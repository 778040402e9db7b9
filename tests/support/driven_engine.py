"""A scheduler with a real model and so much memory, driven step by step in the test's thread."""

from __future__ import annotations

import queue
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlx_pharos.engine.protocol import (
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
from mlx_pharos.engine.worker.prompt_cache import PromptCache
from mlx_pharos.engine.worker.runner import RunnerSize
from mlx_pharos.engine.worker.scheduler import Scheduler
from mlx_pharos.engine.worker.sequential import SequentialRunner
from mlx_pharos.engine.worker.vocabulary import Vocabulary
from support.clock import SimulatedClock
from support.engine import GREEDY
from support.memory import make_guard, measured_costs

if TYPE_CHECKING:
    from mlx_pharos.engine.models.loading import LoadedModel
    from mlx_pharos.engine.worker.runner import Runner, RunnerStep
    from mlx_pharos.resilience.ledger import MemoryCosts

__all__ = ["PROMPT", "SIZE", "TOKENS", "DrivenEngine", "GreedyRunner", "costs_of"]

SIZE = RunnerSize(batch=8, prefill_step=64, prefill_rows=2)
PROMPT = 240
"""Tokens of a prompt where a test says nothing else."""
TOKENS = 530
"""Of the longest answers: their second growth takes another block of KV state."""


class GreedyRunner(BatchRunner):
    """A real runner whose step asks the system for more memory than there is, when it is told to.

    The failure is the allocator's own. MLX's on the CPU cannot be used here: it
    ends the process.
    """

    failures = 0

    def step(self) -> RunnerStep:
        """Fail so often as was asked for, then run."""
        if GreedyRunner.failures:
            GreedyRunner.failures -= 1
            bytearray(1 << 60)
        return super().step()


_calibrated: list[tuple[LoadedModel, MemoryCosts]] = []


def costs_of(loaded: LoadedModel) -> MemoryCosts:
    """Calibrate each model once: the figures differ a little from time to time, and rooms are
    reckoned in them.
    """
    for model, costs in _calibrated:
        if model is loaded:
            return costs
    costs = measured_costs(loaded, step=SIZE.prefill_step)
    _calibrated.append((loaded, costs))
    return costs


def _runner(loaded: LoadedModel) -> Runner:
    if not loaded.batchable:
        return SequentialRunner(loaded.model, eos_token_ids=(), prefill_step=SIZE.prefill_step)
    return GreedyRunner(
        loaded.model,
        eos_token_ids=(),
        size=SIZE,
        wired_limit=False,
        paddable=loaded.paddable,
    )


class DrivenEngine:
    """A scheduler with the tiny model and so much memory, driven in the test's thread."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        room: int,
        vocabulary: Vocabulary | None = None,
        cache_bytes: int | None = None,
        **guard: Any,
    ) -> None:
        GreedyRunner.failures = 0
        self.items: queue.SimpleQueue[InboxItem] = queue.SimpleQueue()
        self.clock = SimulatedClock()
        self.events: list[StepEvent] = []
        self.steps: list[Step] = []
        self.cache = PromptCache(limit_bytes=room if cache_bytes is None else cache_bytes)
        options: dict[str, Any] = {"headroom": lambda: 1 << 40, "clock": self.clock} | guard
        options.setdefault("costs", costs_of(loaded))
        size = SIZE if loaded.batchable else replace(SIZE, batch=1, prefill_rows=1)
        self.guard = make_guard(loaded, self.cache, size, room=room, **options)
        self.scheduler = Scheduler(
            lambda: _runner(loaded),
            self.cache,
            self.guard,
            vocabulary or Vocabulary(loaded.tokenizer),
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

    def submit(
        self, request_id: int, *, prompt: int | list[int] = PROMPT, max_tokens: int = 0, **more: Any
    ) -> None:
        """Let a request arrive, tokenized.

        Args:
            request_id: Unique.
            prompt: Its tokens, or how many; then they depend on the id.
            max_tokens: 0 is as many as there is room for.
            more: Other fields of :class:`Submit`.
        """
        if isinstance(prompt, int):
            prompt = [65 + (request_id * 7 + place) % 50 for place in range(prompt)]
        fields: dict[str, Any] = {"sampling": GREEDY, "n": 1, "stop": (), "logprobs": False} | more
        submit = Submit(
            id=request_id,
            prompt=TokenPrompt(tuple(prompt)),
            max_tokens=max_tokens,
            **{"top_logprobs": 0, "submitted_at": 0.0} | fields,
        )
        self._accepted += 1
        self.items.put(Arrived(request_id))
        self.items.put(Prepared(submit, prompt, float(self._accepted)))

    def step(self, times: int) -> None:
        """Step so often, unless there is nothing to do; nothing is ever promised beyond the limit."""
        for _ in range(times):
            if self.scheduler.idle and self.items.empty():
                return
            self.scheduler.step()
            ledger = self.guard.ledger
            assert 0 <= ledger.reserved_bytes <= ledger.limit_bytes
            assert self.cache.size_bytes <= ledger.spare_bytes

    def tokens(self, request_id: int, choice: int = 0) -> list[int]:
        """What a choice of a request has generated."""
        return [token for delta in self._deltas(request_id, choice) for token in delta.tokens]

    def text(self, request_id: int, choice: int = 0) -> str:
        """The text of a choice of a request."""
        return "".join(delta.text for delta in self._deltas(request_id, choice))

    def _deltas(self, request_id: int, choice: int) -> list[Delta]:
        deltas = [each for each in self.events if isinstance(each, Delta) and each.id == request_id]
        return [each for each in deltas if each.choice == choice]

    def ends(self, request_id: int) -> list[str]:
        """How a request ended: exactly one entry per choice, or one for all."""
        return [
            event.reason
            for event in self.events
            if isinstance(event, Finish | Failed) and event.id == request_id
        ]

    @property
    def reclaims(self) -> list[Reclaim]:
        """What the ladder did."""
        return [each for step in self.steps for each in step.figures.reclaims]
