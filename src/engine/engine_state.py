"""What the server can know of its engine, and what it can ask of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, TypedDict

from .protocol import StepFigures

if TYPE_CHECKING:
    from ..resilience.reservation import Reservation
    from .protocol import Step

__all__ = ["Endurance", "EngineSnapshot", "EngineState", "SubmitOptions"]


class EngineState(enum.Enum):
    """What the engine can do now."""

    LOADING = "loading"
    READY = "ready"
    DOWN = "down"
    """It ended without being asked to; ``down_reason`` says why. Another may be started soon."""
    STOPPED = "stopped"
    """The server closed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endurance:
    """What the server puts up with before it gives up on an engine or on a request."""

    hang_seconds: float = 120.0
    """Silence of an engine that has work. Longer than the longest step or prefill chunk: several
    prompts of a large model share one chunk, which takes a minute on a slow machine."""
    load_seconds: float = 3600.0
    """Time to load a model: hundreds of gigabytes from a network's disk."""
    reload_margin: float = 10.0
    """How many times as long as the longest load one after it may take. What the kernel had in memory
    comes from a disk at a tenth of the speed, and others may want the processors or the disk; still
    slower ones double the limit with each load that overran it."""
    reload_seconds: float = 30.0
    """What a later load may take in any case, as it may ``hang_seconds``: the first one's imports can
    have run while its model was being fetched, and from a cold disk they alone take ten seconds."""
    crash_budget: int = 2
    """Deaths of engines that a request may be in and still go on."""


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """What the engine reported with its last step, zeros before the first; and who waits for it."""

    running: int = 0
    waiting: int = 0
    """Sequences in flight that do not run, by the server's own books: true also while the engine
    says nothing."""
    prompt_cache_entries: int = 0
    prompt_cache_bytes: int = 0
    prompt_cache_hits: int = 0
    prompt_cache_misses: int = 0
    prompt_cache_limit_bytes: int = 0
    at: float = 0.0
    """When the step was, monotonic seconds; 0 before the first."""
    figures: StepFigures = field(default_factory=StepFigures)

    @classmethod
    def of(cls, step: Step | None, prompt_cache_limit_bytes: int, in_flight: int) -> Self:
        """Return the figures of a step; of none, zeros."""
        if step is None:
            return cls(waiting=in_flight, prompt_cache_limit_bytes=prompt_cache_limit_bytes)
        return cls(
            running=step.running,
            waiting=max(0, in_flight - step.running),
            prompt_cache_entries=step.prompt_cache_entries,
            prompt_cache_bytes=step.prompt_cache_bytes,
            prompt_cache_hits=step.prompt_cache_hits,
            prompt_cache_misses=step.prompt_cache_misses,
            prompt_cache_limit_bytes=prompt_cache_limit_bytes,
            at=step.at,
            figures=step.figures,
        )


class SubmitOptions(TypedDict, total=False):
    """What a request may say beside prompt and sampling; see :class:`protocol.Submit`."""

    n: int
    max_tokens: int
    stop: tuple[str, ...]
    logprobs: bool
    top_logprobs: int
    echo: bool
    tenant: int
    reservation: Reservation | None
    """The place that was kept for it, which it takes now."""
