"""A memory guard for tests that drive the engine's parts in their own process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx

from mlx_pharos.engine.worker.costs import calibrate
from mlx_pharos.engine.worker.memory_guard import MemoryGuard

if TYPE_CHECKING:
    from mlx_pharos.engine.models.loading import LoadedModel
    from mlx_pharos.engine.worker.prompt_cache import PromptCache
    from mlx_pharos.engine.worker.runner import RunnerSize
    from mlx_pharos.resilience.ledger import MemoryCosts

__all__ = ["make_guard", "measured_costs"]


def measured_costs(loaded: LoadedModel, *, step: int, batchable: bool = True) -> MemoryCosts:
    """Calibrate a model."""
    return calibrate(
        loaded.model, vocabulary_size=loaded.vocabulary_size, batchable=batchable, step=step
    )


def make_guard(
    loaded: LoadedModel,
    prompt_cache: PromptCache,
    size: RunnerSize,
    *,
    room: int = 1 << 30,
    costs: MemoryCosts | None = None,
    **options: Any,
) -> MemoryGuard:
    """Return a guard of ``room`` bytes beside what this process holds already."""
    mx.clear_cache()  # other tests' buffers are nothing that this guard could be short of
    held = mx.get_active_memory()
    return MemoryGuard(
        costs or measured_costs(loaded, step=size.prefill_step),
        prompt_cache,
        size,
        weights_bytes=held,
        limit_bytes=held + room,
        **options,
    )
