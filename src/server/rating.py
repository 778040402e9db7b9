"""What a request is charged for its tokens: an estimate at first, and what it used at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..resilience.rates import Rates
    from ..telemetry.record import EngineReport
    from .call import GenerationCall

__all__ = ["settled", "take_tokens"]

_BYTES_PER_TOKEN = 4
"""Of JSON with English text; what a prompt really has is known when it is tokenized."""


def take_tokens(rates: Rates, tenant: int, call: GenerationCall, *, body_bytes: int) -> int:
    """Charge a call, and return how much.

    An answer without a bound counts as none until it is there.

    Raises:
        RateLimitError: The tenant's tokens are used up.
    """
    answers = call.max_tokens * call.n * len(call.prompts)
    estimate = body_bytes // _BYTES_PER_TOKEN + answers
    rates.take_tokens(tenant, estimate)
    return estimate


def settled(
    report: Callable[[], EngineReport], rates: Rates, tenant: int, estimate: int
) -> Callable[[], EngineReport]:
    """Return ``report`` so that its figures, which are asked for once, settle the charge."""

    def settle() -> EngineReport:
        found = report()
        used = found.prompt_tokens + found.completion_tokens
        rates.settle_tokens(tenant, estimate=estimate, used=used)
        return found

    return settle
