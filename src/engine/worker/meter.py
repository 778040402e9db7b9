"""What the engine measures of itself, once a step: time, memory, KV state. Imports mlx."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx_lm.models.cache import BatchKVCache, KVCache

from ..models.cache_layers import single_layers
from ..protocol import Step, StepFigures

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..protocol import StepEvent
    from .guarded_cache import GuardedCache
    from .memory_guard import MemoryGuard
    from .prompt_cache import PromptCache
    from .runner import Runner

__all__ = ["StepMeter", "kv_bytes"]

_KV_SECONDS = 0.1
"""KV state is looked at this often at most: a large model has a hundred layers to ask."""


class StepMeter:
    """Makes the figures of a step. Used by the MLX thread alone."""

    def __init__(self, guard: MemoryGuard, prompt_cache: PromptCache, cache: GuardedCache) -> None:
        """Measure, and compare with what the guard has promised."""
        self._guard = guard
        self._prompt_cache = prompt_cache
        self._guarded_cache = cache
        self._spell = _Spell()
        mx.reset_peak_memory()  # what loading and calibrating took is no part of serving
        self._peak = mx.get_active_memory()
        self._began = 0.0
        self._seconds = 0.0
        self._batch_size = 0
        self._kv = (0, 0)
        self._kv_at = 0.0

    def begin(self) -> None:
        """Start the clock of a step."""
        self._spell.note(self._guard.ledger.reserved_bytes, self._prompt_cache.size_bytes)
        self._began = time.monotonic()

    def end(self, batch_size: int) -> None:
        """Stop the clock of a step with so many sequences in it; one that failed is none."""
        self._seconds = time.monotonic() - self._began
        self._batch_size = batch_size

    def report(self, events: tuple[StepEvent, ...], runner: Runner, *, running: int) -> Step:
        """Return the message of a step."""
        cache = self._prompt_cache
        return Step(
            events=events,
            at=time.monotonic(),
            running=running,
            prompt_cache_entries=len(cache),
            prompt_cache_bytes=cache.size_bytes,
            prompt_cache_hits=cache.hits,
            prompt_cache_misses=cache.misses,
            figures=self.figures(runner, running=running),
        )

    def figures(self, runner: Runner, *, running: int) -> StepFigures:
        """Return what is so now, and what the step measured, whose time is forgotten."""
        seconds, self._seconds = self._seconds, 0.0
        batch_size, self._batch_size = self._batch_size, 0
        used, reserved = self._kv_bytes(runner, running)
        self._peak = max(self._peak, mx.get_peak_memory())
        predicted, measured = self._spell.end() if not running else (0, 0)
        guard = self._guard
        return StepFigures(
            seconds=seconds,
            batch_size=batch_size,
            mlx_active_bytes=mx.get_active_memory(),
            mlx_cache_bytes=mx.get_cache_memory(),
            mlx_peak_bytes=self._peak,
            kv_used_bytes=used,
            kv_reserved_bytes=reserved,
            prompt_cache_bypasses=self._prompt_cache.bypasses,
            prompt_cache_evictions=self._prompt_cache.evictions,
            prompt_cache_memory_evictions=self._prompt_cache.memory_evictions,
            prompt_cache_health=self._guarded_cache.health,
            ledger_limit_bytes=guard.ledger.limit_bytes,
            ledger_reserved_bytes=guard.ledger.reserved_bytes,
            predicted_bytes=predicted,
            measured_bytes=measured,
            reclaims=guard.take_reclaims(),
            preemptions=guard.preemptions,
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


class _Spell:
    """A time in which something runs without a pause: what was promised, what was held at most."""

    def __init__(self) -> None:
        self._running = False
        self._held_before = 0
        self._cached_before = 0
        self._predicted = 0

    def note(self, promised: int, cached: int) -> None:
        """Take what is promised before a step; the first step of a spell starts it."""
        if not self._running:
            self._running = True
            self._predicted = 0
            self._cached_before = cached
            self._held_before = mx.get_active_memory()
            mx.reset_peak_memory()
        # Entries that the prompt cache gained in this spell are held, and promised to nobody.
        self._predicted = max(self._predicted, promised + cached - self._cached_before)

    def end(self) -> tuple[int, int]:
        """Return the most that was promised, and the most that was held; zeros between spells."""
        if not self._running:
            return 0, 0
        self._running = False
        return self._predicted, max(mx.get_peak_memory() - self._held_before, 0)


def kv_bytes(layers: Iterable[Any]) -> tuple[int, int]:
    """Return the bytes of KV state that hold tokens, and those that are allocated.

    Plain layers grow by 256 tokens at a time, so part of them is still empty.
    Layers of other kinds (sliding windows, recurrent state) count as full.
    """
    used = reserved = 0
    for layer in single_layers(layers):
        size = int(layer.nbytes)
        reserved += size
        if size and type(layer) in (KVCache, BatchKVCache):
            filled = layer.offset if type(layer) is KVCache else layer._idx  # noqa: SLF001
            size = size * int(filled) // int(layer.keys.shape[2])
        used += size
    return used, reserved
