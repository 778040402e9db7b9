"""A sequence whose reader lets other threads run now and then."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Unhurried"]

Item = TypeVar("Item")

_AT_ONCE = 16
"""Items of a few dozen microseconds each: together some tenths of a millisecond."""
_PAUSE_SECONDS = 0.0003
"""Long enough for a thread that waits for the interpreter to wake up and take it."""


class Unhurried(Sequence[Item]):
    """Items for whoever makes bytes of them in the background, which takes 20 ms for a batch.

    Python takes the interpreter from a thread that computes after 5 ms, and again after each call
    for which the other one lets go of it; who asks a server for something would wait as often.
    """

    def __init__(self, items: Sequence[Item], is_urgent: Callable[[], bool]) -> None:
        """Hand on ``items``, without pauses while ``is_urgent`` says so."""
        self._items = items
        self._is_urgent = is_urgent

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        return self._items[index]

    def __iter__(self) -> Iterator[Item]:
        for place, item in enumerate(self._items, 1):
            yield item
            if place % _AT_ONCE == 0 and not self._is_urgent():
                time.sleep(_PAUSE_SECONDS)
