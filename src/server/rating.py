"""What a request is charged for its tokens: an estimate at first, and what it used at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..resilience.rates import Rates
    from ..telemetry.record import EngineReport
    from .call import GenerationCall

__all__ = ["Charge", "take_tokens"]

_BYTES_PER_TOKEN = 4
"""Of JSON with English text; what a prompt really has is known when it is tokenized."""


class Charge:
    """What a request was charged before anybody knew what it uses. Of its own thread.

    It is settled once: when the answer is whole, before its end is sent, so
    that the client's next request finds the rest given back; or else, when the
    request failed or its client left, with its report.
    """

    def __init__(self, rates: Rates, tenant: int, estimate: int) -> None:
        self._rates = rates
        self._tenant = tenant
        self._estimate = estimate
        self._settled = False

    def settle(self, used: int) -> None:
        """Give back, or take, the difference; only the first call counts."""
        if not self._settled:
            self._settled = True
            self._rates.settle_tokens(self._tenant, estimate=self._estimate, used=used)

    def settled_by(self, report: Callable[[], EngineReport]) -> Callable[[], EngineReport]:
        """Return ``report`` so that its figures settle the charge."""

        def settle() -> EngineReport:
            found = report()
            self.settle(found.prompt_tokens + found.completion_tokens)
            return found

        return settle


def take_tokens(rates: Rates, tenant: int, call: GenerationCall, *, body_bytes: int) -> Charge:
    """Charge a call.

    An answer without a bound counts as none until it is there.

    Raises:
        RateLimitError: The tenant's tokens are used up.
    """
    answers = call.max_tokens * call.n * len(call.prompts)
    estimate = body_bytes // _BYTES_PER_TOKEN + answers
    rates.take_tokens(tenant, estimate)
    return Charge(rates, tenant, estimate)
