"""What the engine measures of itself, once a step: time, memory, KV state. Imports mlx."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx_lm.models.cache import BatchKVCache, KVCache

from ..protocol import StepFigures

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..protocol import PromptCacheHealth
    from .prompt_cache import PromptCache
    from .runner import Runner

__all__ = ["StepMeter", "kv_bytes"]

_KV_SECONDS = 0.1
"""KV state is looked at this often at most: a large model has a hundred layers to ask."""


class StepMeter:
    """Makes the figures of a step. Used by the MLX thread alone."""

    def __init__(self) -> None:
        self._began = 0.0
        self._seconds = 0.0
        self._batch_size = 0
        self._kv = (0, 0)
        self._kv_at = 0.0

    def begin(self, batch_size: int) -> None:
        """Start the clock of a step with so many sequences in it."""
        self._batch_size = batch_size
        self._began = time.monotonic()

    def end(self) -> None:
        """Stop the clock."""
        self._seconds = time.monotonic() - self._began

    def figures(
        self, runner: Runner, prompt_cache: PromptCache, health: PromptCacheHealth, *, running: int
    ) -> StepFigures:
        """Return what the step measured, and forget its time."""
        seconds, self._seconds = self._seconds, 0.0
        batch_size, self._batch_size = self._batch_size, 0
        used, reserved = self._kv_bytes(runner, running)
        return StepFigures(
            seconds=seconds,
            batch_size=batch_size,
            mlx_active_bytes=mx.get_active_memory(),
            mlx_cache_bytes=mx.get_cache_memory(),
            mlx_peak_bytes=mx.get_peak_memory(),
            kv_used_bytes=used,
            kv_reserved_bytes=reserved,
            prompt_cache_bypasses=prompt_cache.bypasses,
            prompt_cache_evictions=prompt_cache.evictions,
            prompt_cache_health=health,
        )

    def _kv_bytes(self, runner: Runner, running: int) -> tuple[int, int]:
        if not running:
            self._kv_at = 0.0
            return 0, 0
        now = time.monotonic()
        if now - self._kv_at >= _KV_SECONDS:
            self._kv_at = now
            self._kv = kv_bytes(runner.kv_layers())
        return self._kv


def kv_bytes(layers: Iterable[Any]) -> tuple[int, int]:
    """Return the bytes of KV state that hold tokens, and those that are allocated.

    Plain layers grow by 256 tokens at a time, so part of them is still empty.
    Layers of other kinds (sliding windows, recurrent state) count as full.
    """
    used = reserved = 0
    for layer in layers:
        size = int(layer.nbytes)
        reserved += size
        if size and type(layer) in (KVCache, BatchKVCache):
            filled = layer.offset if type(layer) is KVCache else layer._idx  # noqa: SLF001
            size = size * int(filled) // int(layer.keys.shape[2])
        used += size
    return used, reserved
