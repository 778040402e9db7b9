"""What the server can know of its engine, and what it can ask of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypedDict

__all__ = ["EngineSnapshot", "EngineState", "SubmitOptions"]


class EngineState(enum.Enum):
    """What the engine can do now."""

    LOADING = "loading"
    READY = "ready"
    DOWN = "down"
    """It ended without being asked to; ``down_reason`` says why. Another may be started soon."""
    STOPPED = "stopped"
    """The server closed it."""


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """What the engine reported with its last step; zeros before the first."""

    running: int = 0
    waiting: int = 0
    prompt_cache_entries: int = 0
    prompt_cache_bytes: int = 0
    prompt_cache_hits: int = 0
    prompt_cache_misses: int = 0
    prompt_cache_limit_bytes: int = 0


class SubmitOptions(TypedDict, total=False):
    """What a request may say beside prompt and sampling; see :class:`protocol.Submit`."""

    n: int
    max_tokens: int
    stop: tuple[str, ...]
    logprobs: bool
    top_logprobs: int
    echo: bool
