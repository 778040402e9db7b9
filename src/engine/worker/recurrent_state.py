"""Recurrent state that keeps no more memory than it counts. Imports mlx."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache

from ..models.cache_layers import single_layers

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["copy_views"]


def copy_views(layers: Iterable[Any]) -> None:
    """Let recurrent state have its own memory.

    mlx-lm cuts it from larger arrays: a row from the batch, the last inputs of a
    convolution from those of a whole chunk. Such a view keeps all of the array.

    Args:
        layers: Changed in place, not evaluated.
    """
    for layer in single_layers(layers):
        if isinstance(layer, ArraysCache):
            state: Any = layer.cache
            layer.cache = [_copied(each) for each in state]


def _copied(state: Any) -> Any:  # noqa: ANN401 - an array, or None
    if state is None:
        return None
    # To take by an array of numbers makes a copy, to slice does not.
    return mx.take(state, mx.arange(state.shape[0]), axis=0)
