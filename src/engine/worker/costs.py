"""What requests cost in memory, measured with the loaded model. Imports mlx.

The model's own cache objects are asked for their kind and their size, because
names in a configuration do not say what a model really keeps. The passes are
tiny: a few dozen tokens, once, while loading.
"""

from __future__ import annotations

import logging
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    ConcatenateKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
    make_prompt_cache,
)

from ...resilience.ledger import BLOCK, LayerShape, MemoryCosts
from ..models.cache_layers import is_recurrent
from ..protocol import Sampling
from .recurrent_state import copy_views
from .sampling import Draws, sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["calibrate", "layer_shapes"]

_log = logging.getLogger(__name__)

_CHUNK = 48
"""Tokens of a measured pass. More than eight, below which GPUs take another path."""
_BETWEEN = 160
"""Tokens between the measured passes: with both, one block of KV state: nothing grows."""
_PASSES = 2
"""MLX starts operations ahead of their inputs, and how many depends on the machine's load: the
least of a few peaks is what the operations themselves take."""
_MARGIN = 1.5
"""Over that least, for what a large pass has in flight."""
_RECURRENT_MARGIN = 2.5
"""The same where layers keep recurrent state: they compute in many small operations, of which
more are in flight."""


_PLAIN_KINDS = (KVCache, QuantizedKVCache, ConcatenateKVCache, RotatingKVCache, ChunkedKVCache)


def calibrate(model: Any, *, vocabulary_size: int, batchable: bool, step: int) -> MemoryCosts:  # noqa: ANN401 - mlx-lm's models share no useful type
    """Run the model on a few tokens and return what they took.

    Args:
        model: Loaded, its weights evaluated.
        vocabulary_size: Ids that its logits cover.
        batchable: Whether sequences run as one batch, padded to the longest.
        step: Tokens of a prefill chunk; a sliding window holds so many more while it is filled.
    """
    cache = make_prompt_cache(model)
    _prefill(model, cache, _CHUNK)  # what the first pass compiles is not a cost
    first, second, twice = _chunk_peaks(model)
    recurrent = is_recurrent(cache)
    # The chunks are equal but for the tokens before them: the difference is attention's.
    pairs = max(second - first, 0) / (_CHUNK * (_CHUNK + _BETWEEN))
    # What grows faster than the chunk, and is not attention's.
    squares = max((twice - 2 * first) / (2 * _CHUNK * _CHUNK) - pairs, 0) if recurrent else 0.0
    tokens = max(first - (pairs + squares) * _CHUNK * _CHUNK, 0) / _CHUNK
    decode = _peak_of(cache, lambda: _decode(model, cache, vocabulary_size))
    margin = _RECURRENT_MARGIN if recurrent else _MARGIN
    costs = MemoryCosts(
        layers=tuple(layer_shapes(cache, step=step)),
        padded=batchable,
        decode_row_bytes=int(decode * margin),
        chunk_token_bytes=int(tokens * margin),
        chunk_pair_bytes=pairs * margin,
        chunk_square_bytes=squares * margin,
    )
    _log.info("calibrated: %s", costs)
    return costs


def _chunk_peaks(model: Any) -> tuple[int, int, int]:  # noqa: ANN401
    """Return what a chunk takes after nothing, after a block less itself, and twice as large."""
    first = second = twice = sys.maxsize
    for _ in range(_PASSES):
        cache = make_prompt_cache(model)
        twice = min(twice, _peak_of(cache, partial(_prefill, model, cache, 2 * _CHUNK)))
        cache = make_prompt_cache(model)
        first = min(first, _peak_of(cache, partial(_prefill, model, cache, _CHUNK)))
        _prefill(model, cache, _BETWEEN)
        second = min(second, _peak_of(cache, partial(_prefill, model, cache, _CHUNK)))
    return first, second, twice


def layer_shapes(cache: Iterable[Any], *, step: int) -> Iterable[LayerShape]:
    """Yield what each layer keeps, read from cache objects that have seen a few tokens.

    A kind that is not known is priced as one that keeps every token, from the
    bytes that it holds now: too much rather than too little.
    """
    for layer in cache:
        match layer:
            case CacheList():
                yield from layer_shapes(layer.caches, step=step)
            case ArraysCache():
                yield LayerShape(fixed_bytes=int(layer.nbytes))
            case RotatingKVCache():
                yield LayerShape(_token_bytes(layer), window=layer.max_size + step)
            case ChunkedKVCache():
                # Grows by blocks from wherever a chunk was cut.
                grown = -(-step // BLOCK) * BLOCK
                token = _token_bytes(layer)
                yield LayerShape(token, window=layer.chunk_size, fixed_bytes=token * grown)
            case _:
                yield LayerShape(_token_bytes(layer))


def _token_bytes(layer: Any) -> int:  # noqa: ANN401 - any cache object
    """Return the bytes of one token of keys and values, from what is allocated."""
    if not int(layer.nbytes):
        return 0  # a layer that shares another's state
    if isinstance(layer, _PLAIN_KINDS):
        keys: Any = layer.keys
        tokens = (keys[0] if isinstance(layer, QuantizedKVCache) else keys).shape[-2]
    else:
        # Of mlx-lm's own kinds one has a size; a model's own kind may have nothing but a counter.
        tokens = max(int(layer.size() if hasattr(layer, "size") else layer.offset), 1)
    return -(-int(layer.nbytes) // int(tokens))


def _prefill(model: Any, cache: list[Any], tokens: int) -> None:  # noqa: ANN401
    model(mx.zeros((1, tokens), dtype=mx.int32), cache=cache)
    mx.eval([layer.state for layer in cache])


def _decode(model: Any, cache: list[Any], vocabulary_size: int) -> None:  # noqa: ANN401
    """Decode a token with the sampling that takes most: every filter and a temperature."""
    logits = model(mx.zeros((1, 1), dtype=mx.int32), cache=cache)[:, -1, :]
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    sampling = Sampling(temperature=1.0, top_p=0.9, top_k=vocabulary_size // 2, min_p=0.01)
    draws = Draws(sampling, choice=0, vocabulary_size=vocabulary_size)
    mx.eval(sample(logprobs, [draws]), logprobs)


def _peak_of(cache: list[Any], work: Callable[[], None]) -> int:
    """Return the bytes that work took at its peak on top of what it added to the cache.

    Recurrent state can be a small part of a large array, all of which stays until the next pass:
    that is the pass's cost, too.
    """
    copy_views(cache)
    mx.eval([layer.state for layer in cache])
    mx.synchronize()
    before = mx.get_active_memory() - _state_bytes(cache)
    limit = mx.set_memory_limit(1)  # above its limit MLX waits for each operation
    try:
        mx.reset_peak_memory()
        work()
        mx.synchronize()
    finally:
        mx.set_memory_limit(limit)
    return max(mx.get_peak_memory() - before - _state_bytes(cache), 0)


def _state_bytes(cache: list[Any]) -> int:
    return sum(int(layer.nbytes) for layer in cache)
