"""A place that is kept for a request that has been read, until somebody has looked at its body."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Reservation"]


class Reservation:
    """Made by :meth:`.admission.Admission.reserve`. Belongs to whichever thread has the request."""

    __slots__ = ("_give_back", "tenant")

    def __init__(self, tenant: int, give_back: Callable[[int], None]) -> None:
        """Keep a place for ``tenant``; ``give_back`` is told when it is free again."""
        self.tenant = tenant
        self._give_back: Callable[[int], None] | None = give_back

    def claim(self) -> bool:
        """Return whether the place is still kept; from now on it is the caller's."""
        kept, self._give_back = self._give_back is not None, None
        return kept

    def end(self) -> None:
        """Give the place back, unless it was taken or given back before."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back(self.tenant)
