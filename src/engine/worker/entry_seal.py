"""What a stored entry looked like, so that one that has changed since is not used.

KV state that does not belong to its tokens raises nothing: the model goes on
from it and writes another text. So an entry is looked at when it is stored and
each time before it is used: the kind of each layer, its counters, and shape and
type of each array. That takes microseconds a layer; the contents of the arrays,
which can be gigabytes, are compared by the probe alone (:mod:`.guarded_cache`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["SealedLayers", "Snapshot", "offsets_of"]


class SealedLayers(list[Any]):
    """The layers of an entry, with what they were when they were stored.

    Args:
        layers: Cache objects of mlx-lm, evaluated.
    """

    def __init__(self, layers: Iterable[Any]) -> None:
        super().__init__(layers)
        self._seal = _described(self)

    @property
    def intact(self) -> bool:
        """Whether they still are what they were."""
        return self._seal == _described(self)


def offsets_of(layers: Iterable[Any]) -> Iterator[int]:
    """Yield how many tokens each layer stands for, where it counts them.

    Recurrent state does not; a layer of several caches has the counts of each.
    """
    for layer in layers:
        inner = getattr(layer, "caches", None)
        if inner is not None:
            yield from offsets_of(inner)
        elif isinstance(offset := getattr(layer, "offset", None), int):
            yield offset


class Snapshot:
    """Every counter and byte of an entry, as it is now.

    Arrays are taken as new objects that share the bytes: whoever writes into
    the entry's own arrays later writes elsewhere.

    Args:
        layers: Cache objects of mlx-lm, evaluated.
    """

    def __init__(self, layers: Iterable[Any]) -> None:
        layers = list(layers)
        self._shape = _described(layers)
        self._arrays = [mx.array(array) for layer in layers for array in _arrays(layer.state)]

    def equals(self, layers: Sequence[Any]) -> bool:
        """Whether these layers have the same counters and the same bytes."""
        if self._shape != _described(layers):
            return False
        arrays = [array for layer in layers for array in _arrays(layer.state)]
        return all(
            bool(mx.array_equal(_bytes_of(mine), _bytes_of(theirs)).item())
            for mine, theirs in zip(self._arrays, arrays, strict=True)
        )


def _bytes_of(array: mx.array) -> mx.array:
    return array.flatten().view(mx.uint8)  # a number alone cannot be viewed as bytes


def _described(layers: Iterable[Any]) -> tuple[Any, ...]:
    return tuple((type(layer), _shape_of(layer.state)) for layer in layers)


def _shape_of(state: Any) -> Any:  # noqa: ANN401 - a tree of arrays and numbers
    if isinstance(state, mx.array):
        return (*state.shape, state.dtype)
    if isinstance(state, list | tuple):
        return tuple(_shape_of(part) for part in state)
    return state


def _arrays(state: Any) -> Iterator[mx.array]:  # noqa: ANN401 - as above
    if isinstance(state, mx.array):
        yield state
    elif isinstance(state, list | tuple):
        for part in state:
            yield from _arrays(part)
