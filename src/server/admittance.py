"""Whether a generation request may be looked at: is it within its rate, and is there any place.

Both are asked before its body is read: who floods a full server costs it little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..resilience.errors import RateLimitError
from .auth import sharer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..engine.client import EngineClient
    from ..resilience.api_keys import ApiKey
    from ..resilience.rates import Rates
    from .caller import Caller

__all__ = ["Admittance"]


class Admittance:
    """One object, called by many threads."""

    def __init__(self, rates: Rates, engine: EngineClient, keys: Sequence[ApiKey] = ()) -> None:
        """Judge by what clients with these keys may ask for, and by the engine's places."""
        self._keys = keys
        self._rates = rates
        self._engine = engine

    def judge(self, caller: Caller) -> None:
        """Count a request, and keep a place for it; note on its caller what is against that.

        One that was judged before is left as it is: it counts once. Waits for nothing.
        """
        if caller.admitted:
            return
        caller.admitted = True
        try:
            self._rates.take_request(caller.tenant)
        except RateLimitError as error:
            caller.refusal = error
            return
        tenant = sharer(caller.tenant, self._keys)
        caller.reservation = self._engine.reserve(tenant)
        if caller.reservation is None:
            caller.refusal = self._engine.refusal(tenant)

    def admit(self, caller: Caller) -> None:
        """Judge a request, if it was not yet, and raise what is against it.

        Raises:
            RateLimitError: The caller sends more than it may.
            RefusedError: The server is full.
        """
        self.judge(caller)
        if caller.refusal is not None:
            raise caller.refusal

    def headers(self, caller: Caller) -> list[tuple[str, str]]:
        """Return the headers that tell a caller what is left of its rates; none if it has none."""
        if not caller.admitted:
            return []
        found = []
        for left in self._rates.allowances(caller.tenant):
            name = left.resource
            found += [
                (f"x-ratelimit-limit-{name}", str(left.limit)),
                (f"x-ratelimit-remaining-{name}", str(left.remaining)),
                (f"x-ratelimit-reset-{name}", f"{left.reset_seconds:.3f}s"),
            ]
        return found
