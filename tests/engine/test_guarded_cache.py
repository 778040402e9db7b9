"""Errors of the prompt cache, provoked in the real one: no request ever notices more than time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache, QuantizedKVCache, RotatingKVCache

from mlx_pharos.engine.protocol import (
    Cancel,
    Delta,
    Finish,
)
from mlx_pharos.engine.worker.batch import BatchRunner
from mlx_pharos.engine.worker.entry_seal import Snapshot
from mlx_pharos.engine.worker.prompt_cache import PromptCache
from mlx_pharos.engine.worker.runner import StoredPrefix
from mlx_pharos.resilience.errors import CacheError
from support.cached_engine import PROMPT, CachedEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlx_pharos.engine.models.loading import LoadedModel


@pytest.fixture(params=[False, True], ids=["batch", "sequential"])
def bench(request: pytest.FixtureRequest, loaded: LoadedModel) -> CachedEngine:
    """A fresh scheduler, with each runner."""
    return CachedEngine(loaded, sequential=request.param)


def test_sound_traffic_has_no_cache_errors(bench: CachedEngine) -> None:
    """Hits, cut hits, choices and stop strings store and load states that are those of their
    tokens.
    """
    first, _ = bench.run(PROMPT, max_tokens=20)
    again, cached = bench.run(PROMPT, max_tokens=20)
    assert (first, 39) == (again, cached)
    bench.run([*PROMPT[:25], 90, 91], n=3)
    bench.run([*PROMPT, *first, 66], max_tokens=4)
    text = "".join(e.text for e in bench.pipe.events if isinstance(e, Delta) and e.id == 1)
    assert text
    bench.run(PROMPT, max_tokens=20, stop=(text[2:4],))
    assert ("closed", 0, 0) == (
        bench.breaker,
        sum(bench.health.errors),
        sum(bench.health.corruptions),
    )


def _lose_keys(entry: Any) -> None:
    entry.prompt_cache[1].keys = None


def _lose_a_layer(entry: Any) -> None:
    del entry.prompt_cache[-1]


def _forget_the_seal(entry: Any) -> None:
    entry.prompt_cache = list(entry.prompt_cache)


def _change_the_shape(entry: Any) -> None:
    layer = entry.prompt_cache[0]
    layer.values = layer.values[..., :1]


def _change_the_type(entry: Any) -> None:
    layer = entry.prompt_cache[0]
    layer.values = layer.values.astype(mx.float16)


def _shift_the_offset(entry: Any) -> None:
    entry.prompt_cache[1].offset -= 3


@pytest.mark.parametrize(
    ("damage", "corruptions"),
    [
        (_lose_keys, (1, 0)),
        (_lose_a_layer, (1, 0)),
        (_forget_the_seal, (1, 0)),
        (_change_the_shape, (1, 0)),
        (_change_the_type, (1, 0)),
        (_shift_the_offset, (0, 1)),
    ],
)
def test_a_damaged_entry_is_not_used(
    loaded: LoadedModel, damage: Callable[[Any], None], corruptions: tuple[int, int]
) -> None:
    """The request is computed without it, to the same text; the entry is dropped and counted, and
    the bytes that it held are given back.
    """
    bench = CachedEngine(loaded)
    undisturbed, _ = bench.run(PROMPT)
    damage(bench.entry)
    misses = bench.cache.misses
    assert (undisturbed, 0) == bench.run(PROMPT)
    assert (corruptions, (1, 0, 0, 0)) == (bench.health.corruptions, bench.health.errors)
    assert misses + 1 == bench.cache.misses
    assert (1, bench.entry.nbytes) == (len(bench.cache), bench.cache.size_bytes)
    assert (undisturbed, 39) == bench.run(PROMPT)


def test_an_entry_that_cannot_be_copied_is_dropped(bench: CachedEngine) -> None:
    """A layer whose deep copy really fails: it holds a lock, which nothing can copy."""
    undisturbed, _ = bench.run(PROMPT, max_tokens=1)
    bench.entry.prompt_cache[0].lock = threading.Lock()
    # All but the last token is the entry, so it is copied whole.
    exact = [*PROMPT, *undisturbed][: bench.entry.prompt_cache[0].offset]
    _, cached = bench.run([*exact, 70])
    assert (0, (0, 1, 0, 0)) == (cached, bench.health.errors)
    assert (undisturbed, 39) == bench.run(PROMPT, max_tokens=1)


def test_a_store_that_fails_costs_the_request_nothing(
    bench: CachedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLX raises when the state is evaluated, as it does out of memory: the text is the same, the
    index and its bytes hold.
    """
    undisturbed, _ = bench.run(PROMPT)
    size = bench.cache.size_bytes
    full = "[malloc] Unable to allocate 123 bytes."

    def fail(*_: object) -> None:
        raise RuntimeError(full)

    with monkeypatch.context() as patch:
        patch.setattr("mlx_pharos.engine.worker.prompt_cache.mx.eval", fail)
        prefix = StoredPrefix([1, 2], bench.entry.prompt_cache)
        with pytest.raises(CacheError):
            bench.cache.store(prefix)  # two tokens, and the state of many more
        mine = [KVCache()]
        mine[0].keys = mine[0].values = mx.zeros((1, 1, 2, 4))
        mine[0].offset = 2
        with pytest.raises(RuntimeError, match="malloc"):
            bench.cache.store(StoredPrefix([1, 2], mine))
    assert (1, size) == (len(bench.cache), bench.cache.size_bytes)
    assert (undisturbed, 39) == bench.run(PROMPT)


def test_an_extraction_that_fails_costs_the_request_nothing(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop string ends the request as ever when its state cannot be taken from the batch; the
    choices that wait for the state are computed without it.
    """
    bench = CachedEngine(loaded)
    undisturbed, _ = bench.run(PROMPT, max_tokens=20)
    text = "".join(e.text for e in bench.pipe.events if isinstance(e, Delta))
    bench.cache.clear()

    def fail(*_: object) -> None:
        message = "[gather] the batch is gone"
        raise RuntimeError(message)

    monkeypatch.setattr(BatchRunner, "extract", fail)
    stopped, _ = bench.run(PROMPT, max_tokens=20, stop=(text[3:6],))
    assert undisturbed[: len(stopped)] == stopped
    request = bench.submit(PROMPT, n=3, max_tokens=5)
    bench.step()
    finishes = [e for e in bench.pipe.events if isinstance(e, Finish) and e.id == request]
    assert [5, 5, 5] == [finish.completion_tokens for finish in finishes]
    assert 2 == bench.health.errors[2]


def test_five_errors_ten_requests_and_a_probe(bench: CachedEngine) -> None:
    """Off and empty after the fifth error; ten requests are served without it; the state of the
    next is stored, loaded and compared; and the cache is on. Every text is the undisturbed one.
    """
    undisturbed, _ = bench.run(PROMPT)
    bench.cache.clear()
    bench.switch_off()
    assert ("open", 0, 0) == (bench.breaker, len(bench.cache), bench.cache.size_bytes)
    looked_up = bench.cache.hits + bench.cache.misses
    for served in range(10):
        assert "open" == bench.breaker, served
        assert (undisturbed, 0) == bench.run(PROMPT)
    assert ("half_open", 0) == (bench.breaker, len(bench.cache))
    assert (undisturbed, 0) == bench.run(PROMPT)
    assert ("closed", 1) == (bench.breaker, len(bench.cache))
    assert 11 == bench.cache.bypasses
    assert looked_up == bench.cache.hits + bench.cache.misses
    assert (undisturbed, 39) == bench.run(PROMPT)
    assert (1, 1, 1) == bench.health.transitions


def test_who_leaves_and_who_fails_counts_neither_way(
    bench: CachedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is off, cancelled and failed requests bring the probe no nearer."""
    bench.switch_off()
    for _ in range(12):
        request = bench.submit(PROMPT, max_tokens=50)
        bench.step(3)
        bench.items.put(Cancel(request))
        bench.step()
    runner = type(bench.scheduler._runner)

    def fail(*_: object) -> None:
        message = "a step fails"
        raise RuntimeError(message)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "step", fail)
        for _ in range(12):
            bench.submit(PROMPT)
            bench.step(3)
    bench.step()
    assert "open" == bench.breaker
    for _ in range(9):
        bench.run(PROMPT)
    assert "open" == bench.breaker
    bench.run(PROMPT)
    assert "half_open" == bench.breaker


def test_a_good_request_between_ends_the_row(bench: CachedEngine) -> None:
    """Four errors, a request that stores and loads well, four errors: the cache stays on."""
    prompts = bench.break_entries(8)
    for prompt in prompts[:4]:
        bench.run(prompt)
    bench.run([90, *PROMPT])
    for prompt in prompts[4:]:
        bench.run(prompt)
    assert ("closed", 8) == (bench.breaker, bench.health.errors[0])


class _Rotting(KVCache):
    """A layer whose copies hold other bytes than it, and look right otherwise."""

    def __deepcopy__(self, _: object) -> KVCache:
        copied = KVCache()
        copied.keys, copied.values = self.keys, None if self.values is None else self.values + 1
        copied.offset = self.offset
        return copied


def test_a_probe_that_finds_other_bytes_leaves_it_off(
    bench: CachedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing raises, all shapes are right, and still one byte tells: ten more requests, then the
    next probe.
    """
    bench.switch_off()
    for _ in range(10):
        bench.run(PROMPT)
    verify = PromptCache.verify

    def rotten(cache: PromptCache, prefix: StoredPrefix) -> None:
        prefix.cache[0].__class__ = _Rotting
        verify(cache, prefix)

    with monkeypatch.context() as patch:
        patch.setattr(PromptCache, "verify", rotten)
        bench.run(PROMPT)
    assert ("open", 0, (5, 1)) == (
        bench.breaker,
        len(bench.cache),
        bench.health.corruptions,
    )
    for _ in range(10):
        bench.run(PROMPT)
    assert "half_open" == bench.breaker
    bench.run(PROMPT)
    assert ("closed", (1, 2, 2)) == (bench.breaker, bench.health.transitions)


def test_a_state_that_shows_nothing_is_no_probe(bench: CachedEngine) -> None:
    """One too short to be looked up decides nothing: the next request's is taken."""
    bench.switch_off()
    for _ in range(10):
        bench.run(PROMPT)
    bench.run([65, 66, 67], max_tokens=2)
    state = [bench.breaker]
    bench.run(PROMPT)
    assert ["half_open", "closed"] == [*state, bench.breaker]


def test_a_cache_that_is_off_by_setting_has_no_breaker(loaded: LoadedModel) -> None:
    """Zero bytes: bypasses are counted, and nothing else ever happens."""
    bench = CachedEngine(loaded, limit_bytes=0)
    for _ in range(12):
        bench.run(PROMPT)
    assert ("closed", (0, 0, 0)) == (bench.breaker, bench.health.transitions)
    assert 12 == bench.cache.bypasses


def test_a_snapshot_knows_every_byte() -> None:
    """It keeps what was, also when the entry's own arrays are written into."""
    layers: tuple[Any, ...] = (KVCache(), RotatingKVCache(max_size=32), QuantizedKVCache(32, 8))
    for layer in layers:
        value = mx.random.normal((1, 2, 20, 32))
        layer.update_and_fetch(value, value)
        mx.eval(layer.state)
        before = Snapshot([layer])
        assert before.equals([layer])
        keys: Any = layer.keys
        if not isinstance(keys, mx.array):
            keys = keys[0]  # packed values, beside their scales
        keys[0, 0, 3, 1] = keys[0, 0, 3, 1] + 1
        assert not before.equals([layer])
