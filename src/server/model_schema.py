"""What the routes about the server itself answer: models, health, errors."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .strict_model import StrictModel

__all__ = ["CacheSummary", "ErrorAnswer", "Health", "Live", "Model", "ModelList", "Ready"]


class Model(StrictModel):
    """A served name."""

    id: str
    object: Literal["model"]
    created: int
    """Seconds since 1970: when this server started."""
    owned_by: str


class ModelList(StrictModel):
    """All served names; the first is the one that answers carry."""

    object: Literal["list"]
    data: list[Model]


class ErrorDetail(StrictModel):
    """What is wrong, and what to do."""

    message: str
    type: str
    param: str | None
    """The field at fault, in the form ``messages[0].content``."""
    code: str | None


class ErrorAnswer(StrictModel):
    """Every error of this server has this shape, with whatever status."""

    error: ErrorDetail


class Live(StrictModel):
    """The server process answers."""

    status: Literal["ok"]


class Ready(StrictModel):
    """Whether a generation request would be taken now."""

    status: Literal["ready", "loading", "down", "draining"]
    reason: str
    """Empty when ready."""


class CacheSummary(StrictModel):
    """The prompt cache, as the engine last reported it."""

    entries: int
    bytes: int
    limit_bytes: int
    hits: int
    misses: int
    bypasses: int = Field(description="Prompts that were not looked up because it was off.")
    breaker: Literal["closed", "open", "half_open"] = Field(
        description="`closed` while it is in use; `open` after too many errors in a row; "
        "`half_open` while it is about to be tried."
    )
    errors: int = Field(description="Operations that failed; the requests went on without it.")
    corruptions: int = Field(description="Entries that were not what had been stored.")


class MemorySummary(StrictModel):
    """Memory, as the engine last reported it; zeros before the model is loaded."""

    weights_bytes: int = Field(description="What the model itself takes.")
    limit_bytes: int = Field(description="What may be promised to requests.")
    reserved_bytes: int = Field(description="What is promised to those that run.")
    held_bytes: int = Field(description="What MLX holds in all; 0 while no engine is ready.")
    largest_request_tokens: int = Field(
        description="Prompt and answer of the largest request that fits when it is alone."
    )
    preemptions: int = Field(
        description="Sequences that went back to the queue because memory had run short."
    )


class EngineHistory(StrictModel):
    """What became of the engines before this one."""

    restarts: int
    """How often one that had ended was started again."""
    last_reason: str
    """How the last one ended: a signal, an exit code, ``hang`` or ``out_of_memory``; empty where none
    has."""


class Health(StrictModel):
    """A report for people; probes use ``/livez`` and ``/readyz``."""

    status: Literal["ok", "loading", "down", "draining"]
    reason: str
    """Why the status is not ``ok``; empty when it is."""
    model: str
    """The first served name."""
    model_loaded: bool
    device: str | None
    """What computes: ``cpu`` or ``gpu``; null until the model is loaded."""
    context_length: int | None
    """Tokens of prompt and answer together; null until the model is loaded."""
    running: int = Field(description="Sequences in prefill or decode.")
    waiting: int = Field(
        description="Sequences in the queue; while the engine is down, those that wait for it."
    )
    engine: EngineHistory
    memory: MemorySummary
    cache: CacheSummary
