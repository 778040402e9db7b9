"""Rates: what a client may use per minute."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_pharos.resilience.errors import RateLimitError
from mlx_pharos.resilience.rates import Rates


def refused(rates: Rates, tokens: int = 0) -> float:
    """Be refused, and return when to come back."""
    take = partial(rates.take_tokens, 1, tokens) if tokens else partial(rates.take_request, 1)
    with pytest.raises(RateLimitError) as caught:
        take()
    assert caught.value.retry_after is not None
    return caught.value.retry_after


def test_a_burst_is_taken_and_then_the_rate_holds() -> None:
    """The advice is when the next one is taken, not a second before or after."""
    now = [0.0]
    rates = Rates(requests=60, tokens=0, clock=lambda: now[0])
    for _ in range(60):
        rates.take_request(1)
    assert 1.0 == refused(rates)
    rates.take_request(2)
    now[0] = 1.0
    rates.take_request(1)
    assert 1.0 == refused(rates)


def test_tokens_are_settled_at_the_end() -> None:
    """What was charged too much comes back, what was too little is owed."""
    now = [0.0]
    rates = Rates(requests=0, tokens=600, clock=lambda: now[0])
    rates.take_tokens(1, 600)
    assert 10.0 == refused(rates, 100)
    rates.settle_tokens(1, estimate=600, used=50)
    assert 550 == rates.allowances(1)[0].remaining
    rates.take_tokens(1, 10)
    rates.settle_tokens(1, estimate=10, used=1150)
    assert 0 == rates.allowances(1)[0].remaining
    assert 61.0 == pytest.approx(refused(rates, 10))


def test_a_request_beyond_a_minutes_worth_is_taken_by_a_full_bucket() -> None:
    """It is not refused for ever; the bucket owes afterwards."""
    now = [0.0]
    rates = Rates(requests=0, tokens=60, clock=lambda: now[0])
    rates.take_tokens(1, 600)
    now[0] = 540.0
    assert 1.0 == pytest.approx(refused(rates, 1))


def test_no_limit_refuses_nobody() -> None:
    """And has nothing to tell."""
    rates = Rates(requests=0, tokens=0)
    for _ in range(1000):
        rates.take_request(1)
        rates.take_tokens(1, 10**9)
    assert [] == rates.allowances(1)


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=100), st.integers(1, 30))
def test_nobody_exceeds_burst_and_rate(calls: list[tuple[float, bool]], limit: int) -> None:
    """In any run of calls at most a minute's worth and what has come since is taken."""
    now = [0.0]
    rates = Rates(requests=limit, tokens=0, clock=lambda: now[0])
    taken = 0
    for passed, patient in calls:
        now[0] += passed
        try:
            rates.take_request(7)
        except RateLimitError as error:
            if patient:
                now[0] += (error.retry_after or 0.0) + 1e-6
                rates.take_request(7)
                taken += 1
        else:
            taken += 1
        assert taken <= limit + now[0] * limit / 60 + 1e-3
