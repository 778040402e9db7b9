"""What waits for a place in the batch: fair between tenants, first come first served within one."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .sequence import Request, Sequence

__all__ = ["WaitingSequences"]

_Lane = OrderedDict["Sequence", None]


class WaitingSequences:
    """A lane per tenant; the lanes take turns, one sequence each.

    However much one tenant has waiting, another's first sequence waits for one
    turn of each tenant at most. The cost of each call does not depend on how
    much waits. Owned by the scheduler and its thread.
    """

    def __init__(self) -> None:
        self._lanes: OrderedDict[int, _Lane] = OrderedDict()
        """By tenant, none of them empty; the first one's turn is next."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, sequence: Sequence) -> None:
        """Let a sequence wait behind those of its tenant."""
        self._lane_of(sequence)[sequence] = None
        self._count += 1

    def put_first(self, sequences: Iterable[Sequence]) -> None:
        """Let further choices of a request wait, in their order, ahead of their tenant's others."""
        for sequence in reversed([*sequences]):
            lane = self._lane_of(sequence)
            lane[sequence] = None
            lane.move_to_end(sequence, last=False)
            self._count += 1

    def peek(self) -> Sequence:
        """Return whose turn is next and leave it there; raises ``IndexError`` where nothing is."""
        for lane in self._lanes.values():
            return next(iter(lane))
        raise IndexError

    def first_of(self, request: Request) -> Sequence | None:
        """Return the first of a request's sequences that wait, and leave it there."""
        lane = self._lanes.get(request.submit.tenant, ())
        return next((each for each in lane if each.request is request), None)

    def pop(self, sequence: Sequence | None = None) -> Sequence:
        """Take out this one, or whose turn is next; raises ``IndexError`` where nothing waits."""
        sequence = sequence or self.peek()
        tenant = sequence.request.submit.tenant
        self._take_out(tenant, sequence)
        if tenant in self._lanes:
            self._lanes.move_to_end(tenant)
        return sequence

    def remove(self, request: Request) -> None:
        """Let go of every sequence of a request that waits and is not yet forgotten."""
        tenant = request.submit.tenant
        for sequence in request.live:
            if sequence in self._lanes.get(tenant, ()):
                self._take_out(tenant, sequence)

    def _lane_of(self, sequence: Sequence) -> _Lane:
        return self._lanes.setdefault(sequence.request.submit.tenant, OrderedDict())

    def _take_out(self, tenant: int, sequence: Sequence) -> None:
        lane = self._lanes[tenant]
        del lane[sequence]
        self._count -= 1
        if not lane:
            del self._lanes[tenant]
