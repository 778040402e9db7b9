"""What the server can know of its engine, and what it can ask of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, TypedDict

from .protocol import Step, StepFigures

if TYPE_CHECKING:
    from ..resilience.reservation import Reservation
    from .protocol import Loaded

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
    """What the engine reported last: with a step, or when it was ready; and who waits for it."""

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
    measured: bool = False
    """Whether there is an engine that has said all this. Without one the figures are zeros: of what
    runs and is stored because nothing is, of memory because nobody knows."""

    @classmethod
    def of(cls, last: Step | Loaded | None, loaded: Loaded | None, in_flight: int) -> Self:
        """Return the figures of what an engine said last; of none, zeros.

        Args:
            last: What the engine that is there said last; None without one.
            loaded: What the last engine said that was ready; None before the first.
            in_flight: Sequences, by the server's own books.
        """
        limit = loaded.prompt_cache_limit_bytes if loaded else 0
        if not isinstance(last, Step):
            return cls(
                waiting=in_flight,
                prompt_cache_limit_bytes=limit,
                figures=last.figures if last else StepFigures(),
                measured=last is not None,
            )
        return cls(
            running=last.running,
            waiting=max(0, in_flight - last.running),
            prompt_cache_entries=last.prompt_cache_entries,
            prompt_cache_bytes=last.prompt_cache_bytes,
            prompt_cache_hits=last.prompt_cache_hits,
            prompt_cache_misses=last.prompt_cache_misses,
            prompt_cache_limit_bytes=limit,
            at=last.at,
            figures=last.figures,
            measured=True,
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
