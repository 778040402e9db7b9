"""What a runner is: the part that turns jobs into tokens, one step at a time.

Two runners exist: :class:`.batch.BatchRunner` for models whose caches can be
merged, and :class:`.sequential.SequentialRunner` for the others. The
scheduler does not know which one it drives.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    import mlx.core as mx

    from .sampling import Draws, Processor

__all__ = [
    "Job",
    "PrefillChunk",
    "Runner",
    "RunnerSize",
    "RunnerStep",
    "SampledToken",
    "StoredPrefix",
]


@dataclass(frozen=True, slots=True)
class StoredPrefix:
    """KV state and the tokens that it stands for."""

    tokens: list[int]
    cache: list[Any]
    """One cache object of mlx-lm per layer."""


@dataclass(frozen=True, slots=True)
class Job:
    """One sequence to run."""

    prefix: StoredPrefix | None
    """KV state of the first tokens of the prompt, owned by the job; None starts from nothing."""
    rest: list[int]
    """Prompt tokens after the prefix; at least one."""
    max_tokens: int
    """At least 1."""
    draws: Draws
    processors: tuple[Processor, ...]
    scored: bool = False
    """Whether the log probabilities of its tokens are wanted."""


_SMALLEST_STEP = 32
"""Tokens of a prefill chunk, below which prefill takes for ever."""


class PrefillChunk(NamedTuple):
    """A prefill chunk of a job is done."""

    key: int
    processed: int
    """Tokens of ``Job.rest`` in the KV cache so far."""
    prompt_in_cache: bool
    """All but the last prompt token are in the KV cache, which can be extracted now."""


class SampledToken(NamedTuple):
    """A job has a new token. A tuple, because thousands are made per second."""

    key: int
    token: int
    logprobs: mx.array | None
    """Shape (vocabulary,), float, after bias and penalties; may be None where nobody wants them."""
    finish: Literal["stop", "length"] | None
    """Why the job ended with this token; an ended job is no longer in the runner."""
    stored: StoredPrefix | None
    """The KV state of an ended job."""


@dataclass(slots=True)
class RunnerStep:
    """What one step brought."""

    prefilled: list[PrefillChunk] = field(default_factory=list)
    sampled: list[SampledToken] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RunnerSize:
    """What a runner does at once, and with it what a step takes in memory."""

    batch: int
    """Jobs at the same time."""
    prefill_step: int
    """Tokens of each prompt in a prefill chunk at most."""
    prefill_rows: int
    """Prompts of ``prefill_step`` tokens that share a chunk at most. Of shorter ones more do: a
    chunk is bounded by its tokens, which are what it takes of time and memory."""

    def shrunk(self, halvings: int) -> RunnerSize:
        """Return it halved so often, but never to nothing."""
        return RunnerSize(
            max(self.batch >> halvings, 1),
            max(self.prefill_step >> halvings, min(_SMALLEST_STEP, self.prefill_step)),
            max(self.prefill_rows >> halvings, 1),
        )


class Runner(Protocol):
    """Runs jobs. Everything here is called from the MLX thread only."""

    size: RunnerSize

    def close(self) -> None:
        """Let go of all state, so that its memory is free at once. Nothing may be called after."""

    def resize(self, size: RunnerSize) -> None:
        """Do more or less at once from the next step on; jobs that run go on."""

    def insert(self, job: Job) -> int:
        """Take a job and return its key, unique in the life of the runner."""

    def remove(self, key: int) -> None:
        """Drop a job."""

    def extract(self, key: int) -> StoredPrefix | None:
        """Return the KV state of a running job for keeping, where there is one."""

    def kv_layers(self) -> Iterable[Any]:
        """Return the cache objects of the running jobs, to be looked at alone."""

    def step(self) -> RunnerStep:
        """Do one decode step for all decoding jobs, then at most one prefill chunk."""
