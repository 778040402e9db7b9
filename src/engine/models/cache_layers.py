"""What the layers of a model keep, as mlx-lm's cache objects. Imports mlx."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlx_lm.models.cache import ArraysCache, CacheList

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["is_batchable", "is_recurrent", "single_layers"]


def single_layers(layers: Iterable[Any]) -> Iterator[Any]:
    """Yield the cache objects of mlx-lm, those of a layer with several one by one."""
    for layer in layers:
        if isinstance(layer, CacheList):
            yield from single_layers(layer.caches)
        else:
            yield layer


def is_batchable(layers: Iterable[Any]) -> bool:
    """Return whether mlx-lm can merge all of it with that of other requests."""
    return all(hasattr(layer, "merge") for layer in single_layers(layers))


def is_recurrent(layers: Iterable[Any]) -> bool:
    """Return whether any of it is state that takes in every token and cannot be cut."""
    return any(isinstance(layer, ArraysCache) for layer in single_layers(layers))
