"""How much memory an engine has beside its model, and who guards it. Imports mlx."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from ...resilience.errors import ModelError
from ...resilience.ledger import BLOCK
from ..models.machine import allocatable_memory
from .costs import calibrate
from .memory_guard import MemoryGuard
from .prompt_cache import PromptCache

if TYPE_CHECKING:
    from ..models.loading import LoadedModel
    from ..protocol import EngineOptions
    from .runner import RunnerSize

__all__ = ["provide_memory"]

_RESERVE_SHARE = 10
"""This share (1/n) of what is free stays so where the engine chooses its limit itself: for Python,
for what the libraries allocate beside MLX, and for other programs."""
_CACHE_SHARE = 4
"""The prompt cache may take this share (1/n) of the memory beside the model."""
_MIB = 1 << 20


def provide_memory(
    loaded: LoadedModel, options: EngineOptions, size: RunnerSize
) -> tuple[MemoryGuard, PromptCache]:
    """Measure the model and what requests to it cost, and return who guards what is left.

    Raises:
        ModelError: Nothing is left to serve with.
    """
    costs = calibrate(
        loaded.model,
        vocabulary_size=loaded.vocabulary_size,
        batchable=loaded.batchable,
        step=size.prefill_step,
    )
    mx.synchronize()
    mx.clear_cache()
    weights = mx.get_active_memory()
    limit = options.memory_limit_bytes
    if limit < 0:
        free = _free_memory(loaded.device, held=weights)
        limit = weights + free - free // _RESERVE_SHARE
    mx.set_memory_limit(max(limit, 1))  # near it MLX starts fewer operations ahead
    cache_limit = options.prompt_cache_bytes
    if cache_limit < 0:
        cache_limit = max(limit - weights, 0) // _CACHE_SHARE
    prompt_cache = PromptCache(limit_bytes=cache_limit)
    guard = MemoryGuard(
        costs, prompt_cache, size, weights_bytes=weights, limit_bytes=limit, device=loaded.device
    )
    if guard.largest_tokens < min(BLOCK, loaded.context_length):
        message = (
            f"The model takes {weights // _MIB} MiB, and a memory limit of {limit // _MIB} MiB "
            f"leaves room for {guard.largest_tokens} tokens. Raise memory_limit, or serve a "
            "smaller model."
        )
        raise ModelError(message)
    if options.halvings:
        guard.start_smaller(options.halvings)
    return guard, prompt_cache


def _free_memory(device: str, *, held: int) -> int:
    free = allocatable_memory()
    if device == "gpu":
        # A GPU with memory of its own; on Metal both figures describe the same memory.
        size = int(mx.device_info().get("memory_size", 0))
        free = min(free, size - held) if size else free
    return max(free, 0)
