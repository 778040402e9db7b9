"""The prompt cache: what it finds, what it keeps."""

from __future__ import annotations

import time

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache, RotatingKVCache

from mlx_pharos.engine.worker.prompt_cache import PromptCache
from mlx_pharos.engine.worker.runner import StoredPrefix

_BYTES_PER_TOKEN = 2 * 4 * 4


def _entry(tokens: list[int]) -> StoredPrefix:
    """KV state whose keys are the tokens themselves, so that a copy can be checked."""
    layer = KVCache()
    values = mx.array(tokens, dtype=mx.float32)[None, None, :, None] * mx.ones((1, 1, 1, 4))
    layer.update_and_fetch(values, values)
    layer.keys, layer.values = layer.keys_and_values()
    return StoredPrefix(list(tokens), [layer])


def _keys(found: StoredPrefix) -> list[int]:
    keys, _ = found.cache[0].keys_and_values()
    return [int(value) for value in keys[0, 0, :, 0].tolist()]


def test_longest_common_prefix_is_found_and_cut() -> None:
    """The state that comes back is exactly that of the tokens that it names."""
    cache = PromptCache(limit_bytes=1 << 30)
    cache.store(_entry([*range(50), 1, 2, 3]))
    found = cache.lookup([*range(50), 7, 8])
    assert found is not None
    assert list(range(50)) == found.tokens == _keys(found)
    assert (1, 0) == (cache.hits, cache.misses)


def test_last_token_is_always_left_to_compute() -> None:
    """A prompt that is stored whole still needs its last logits."""
    cache = PromptCache(limit_bytes=1 << 30)
    cache.store(_entry(list(range(40))))
    found = cache.lookup(list(range(40)))
    assert found is not None
    assert list(range(39)) == found.tokens == _keys(found)


def test_exact_entry_comes_back_whole() -> None:
    """An entry that is the prompt less its last token needs no cut."""
    cache = PromptCache(limit_bytes=1 << 30)
    cache.store(_entry(list(range(40))))
    found = cache.lookup(list(range(41)))
    assert found is not None
    assert list(range(40)) == found.tokens == _keys(found)


@pytest.mark.parametrize("prompt", [[5], [900, *range(30)], [*range(10), 900, *range(30)]])
def test_unknown_or_short_prefix_is_a_miss(prompt: list[int]) -> None:
    """A common beginning of a few tokens is no hit."""
    cache = PromptCache(limit_bytes=1 << 30)
    cache.store(_entry(list(range(40))))
    assert cache.lookup(prompt) is None
    assert (0, 1) == (cache.hits, cache.misses)


def test_a_found_state_is_the_callers_own() -> None:
    """Going on from it does not change what is stored."""
    cache = PromptCache(limit_bytes=1 << 30)
    cache.store(_entry(list(range(40))))
    found = cache.lookup([*range(30), 900])
    assert found is not None
    more = mx.full((1, 1, 1, 4), 77.0)
    found.cache[0].update_and_fetch(more, more)
    again = cache.lookup(list(range(41)))
    assert again is not None
    assert list(range(40)) == _keys(again)


def test_bytes_are_bounded_by_dropping_the_oldest() -> None:
    """However much is stored, the limit holds and the newest entry is there."""
    limit = 3 * 40 * _BYTES_PER_TOKEN
    cache = PromptCache(limit_bytes=limit)
    for begin in range(0, 1000, 100):
        cache.store(_entry(list(range(begin, begin + 40))))
        assert cache.size_bytes <= limit
    assert 3 == len(cache)
    assert cache.lookup(list(range(900, 941))) is not None
    assert cache.lookup(list(range(41))) is None


def test_an_entry_that_is_used_outlives_older_uses() -> None:
    """What makes room is what was not used for longest, not what was stored first."""
    cache = PromptCache(limit_bytes=2 * 40 * _BYTES_PER_TOKEN)
    cache.store(_entry(list(range(40))))
    cache.store(_entry(list(range(100, 140))))
    assert cache.lookup([*range(30), 900]) is not None
    cache.store(_entry(list(range(200, 240))))
    assert cache.lookup(list(range(41))) is not None
    assert cache.lookup(list(range(100, 141))) is None


def test_state_that_cannot_be_cut_serves_only_whole() -> None:
    """A sliding window that has wrapped knows nothing of its beginning."""
    layer = RotatingKVCache(max_size=20)
    for token in range(40):
        value = mx.full((1, 1, 1, 4), float(token))
        layer.update_and_fetch(value, value)
    cache = PromptCache(limit_bytes=1 << 30)
    cache.store(StoredPrefix(list(range(40)), [layer]))
    assert cache.lookup([*range(30), 900, 901]) is None
    whole = cache.lookup([*range(40), 900])
    assert whole is not None
    assert list(range(40)) == whole.tokens


def test_switched_off_it_keeps_and_counts_nothing() -> None:
    """Zero bytes: no entry, no hit, no miss."""
    cache = PromptCache(limit_bytes=0)
    cache.store(_entry(list(range(40))))
    assert cache.lookup(list(range(40))) is None
    assert (0, 0, 0) == (len(cache), cache.hits, cache.misses)


def test_lookup_beside_a_very_long_entry_is_quick() -> None:
    """The MLX thread looks up; a search that grows with the square stalls every stream."""
    cache = PromptCache(limit_bytes=1 << 30)
    cache.store(_entry(list(range(100_000))))
    begin = time.perf_counter()
    found = cache.lookup([*range(20), 900, 901])
    assert time.perf_counter() - begin < 1  # the square of it takes 8 s
    assert found is not None
    assert list(range(20)) == _keys(found)


def test_an_entry_larger_than_the_cache_is_not_kept() -> None:
    """It would make all others go, and then itself."""
    cache = PromptCache(limit_bytes=100 * _BYTES_PER_TOKEN)
    cache.store(_entry(list(range(40))))
    cache.store(_entry(list(range(1000, 1200))))
    assert 1 == len(cache)
    assert cache.lookup(list(range(41))) is not None


def test_uncounted_lookups_are_no_hits() -> None:
    """A request that reads what it stored itself says nothing about the cache."""
    cache = PromptCache(limit_bytes=1 << 30)
    cache.store(_entry(list(range(40))))
    assert cache.lookup(list(range(41)), counted=False) is not None
    assert cache.lookup([900] * 30, counted=False) is None
    assert (0, 0) == (cache.hits, cache.misses)


def test_bytes_counted_are_bytes_held() -> None:
    """Views of a batch's buffers are computed when stored, and do not keep the buffers."""
    cache = PromptCache(limit_bytes=1 << 30)
    before = mx.get_active_memory()
    batch = mx.zeros((64, 4, 512, 16)) + 1
    mx.eval(batch)
    layer = KVCache()
    layer.keys = mx.contiguous(batch[3:4])
    layer.values = mx.contiguous(batch[4:5])
    layer.offset = 512
    cache.store(StoredPrefix(list(range(512)), [layer]))
    del batch, layer
    held = mx.get_active_memory() - before
    assert held <= cache.size_bytes * 1.1


def test_evictions_and_bypasses_are_counted() -> None:
    """An entry that makes room is an eviction, one that a longer one replaces is not; one whose
    memory is needed counts apart; a cache that is off has bypasses, and neither hits nor misses.
    """
    cache = PromptCache(limit_bytes=100 * _BYTES_PER_TOKEN)
    cache.store(_entry(list(range(50))))
    cache.store(_entry(list(range(60))))
    assert (1, 0) == (len(cache), cache.evictions)
    cache.store(_entry(list(range(100, 160))))
    assert (1, 1) == (len(cache), cache.evictions)
    cache.allow(0)
    assert (0, 1, 1) == (len(cache), cache.evictions, cache.memory_evictions)
    off = PromptCache(limit_bytes=0)
    assert off.lookup(list(range(50))) is None
    assert (0, 0, 1) == (off.hits, off.misses, off.bypasses)
