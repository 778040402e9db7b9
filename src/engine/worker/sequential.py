"""Runs sequences one after the other, for models whose caches cannot be merged."""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING, Any, Literal, cast

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from .runner import Job, PrefillChunk, RunnerSize, RunnerStep, SampledToken, StoredPrefix
from .sampling import sample

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SequentialRunner"]


class SequentialRunner:
    """Holds one job; the scheduler's queue holds the others.

    The next token is computed while the current one is handed out, as
    mlx-lm's own ``generate_step`` does it.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - mlx-lm's models share no useful type
        *,
        eos_token_ids: Iterable[int],
        prefill_step: int,
    ) -> None:
        self._model = model
        self._eos = frozenset(eos_token_ids)
        self.size = RunnerSize(batch=1, prefill_step=prefill_step, prefill_rows=1)
        self._keys = itertools.count()
        self._job: Job | None = None
        self._key = -1
        self._cache: list[Any] = []
        self._next: tuple[mx.array, mx.array] | None = None

    def close(self) -> None:
        """Let go of the job and its state."""
        self._job = None
        self._next = None
        self._cache = []

    def resize(self, size: RunnerSize) -> None:
        """Prefill in smaller or larger chunks from the next step on."""
        self.size = size

    def insert(self, job: Job) -> int:
        """Take the job. Raises RuntimeError when one is running."""
        if self._job is not None:
            message = "the sequential runner takes one job at a time"
            raise RuntimeError(message)
        self._job = job
        self._key = next(self._keys)
        self._cache = job.prefix.cache if job.prefix else make_prompt_cache(self._model)
        self._in_cache = list(job.prefix.tokens) if job.prefix else []
        self._prompt = list(job.rest)
        self._processed = 0
        self._generated = 0
        self._next = None
        return self._key

    def remove(self, key: int) -> None:
        """Drop the job and its state."""
        if key == self._key:
            self.close()

    def extract(self, key: int) -> StoredPrefix | None:
        """Return a copy of the KV state, as the running job goes on with its own."""
        if key != self._key or self._job is None or not self._in_cache:
            return None
        return StoredPrefix(list(self._in_cache), copy.deepcopy(self._cache))

    def kv_layers(self) -> Iterable[Any]:
        """Return the cache objects of the running job."""
        return self._cache if self._job is not None else ()

    def step(self) -> RunnerStep:
        """Prefill one chunk or, once the prompt is in, decode one token."""
        step = RunnerStep()
        if self._job is None:
            return step
        if len(self._prompt) > 1:
            step.prefilled.append(self._prefill())
        else:
            step.sampled.append(self._decode(self._job))
        return step

    def _prefill(self) -> PrefillChunk:
        size = min(self.size.prefill_step, len(self._prompt) - 1)
        chunk, self._prompt = self._prompt[:size], self._prompt[size:]
        self._model(mx.array([chunk]), cache=self._cache)
        mx.eval([entry.state for entry in self._cache])
        mx.clear_cache()
        self._in_cache += chunk
        self._processed += size
        return PrefillChunk(self._key, self._processed, prompt_in_cache=len(self._prompt) == 1)

    def _decode(self, job: Job) -> SampledToken:
        if self._next is None:
            self._in_cache += self._prompt
            self._next = self._compute(job, mx.array(self._prompt), mx.array(self._in_cache))
        token, logprobs = self._next
        ends_by_length = self._generated + 1 >= job.max_tokens
        if not ends_by_length:
            context = mx.concatenate([mx.array(self._in_cache), token])
            self._next = self._compute(job, token, context)
        value = cast("int", token.item())
        self._generated += 1
        if not ends_by_length:
            self._in_cache.append(value)  # it went in when the next one was computed
        finish: Literal["stop", "length"] | None = None
        if value in self._eos:
            finish = "stop"
        elif ends_by_length:
            finish = "length"
        stored = None
        if finish is not None:
            stored = StoredPrefix(self._in_cache, self._cache)
            self.close()
        return SampledToken(self._key, value, logprobs[0], finish, stored)

    def _compute(self, job: Job, token: mx.array, context: mx.array) -> tuple[mx.array, mx.array]:
        """Run the model on one token and sample the next, without waiting for the result."""
        logits = self._model(token[None], cache=self._cache)[:, -1, :]
        for processor in job.processors:
            logits = processor(context, logits)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        sampled = sample(logprobs, [job.draws])
        mx.async_eval(sampled, logprobs)
        return sampled, logprobs
