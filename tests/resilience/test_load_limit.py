"""How long a load may take, once it is known how long one took."""

from __future__ import annotations

from mlx_pharos.resilience.load_limit import LoadLimit


def _limit() -> LoadLimit:
    return LoadLimit(3600.0, least_seconds=120.0, margin=10.0)


def test_the_first_load_may_take_what_the_operator_allows() -> None:
    """Nobody knows yet what it takes."""
    limit = _limit()
    assert 3600.0 == limit.seconds
    limit.overran()
    assert 3600.0 == limit.seconds


def test_later_loads_get_a_margin_over_the_longest() -> None:
    """Never less than is given in any case, and never more than the operator allows."""
    limit = _limit()
    found = []
    for seconds in (2.0, 50.0, 20.0, 500.0):
        limit.loaded(seconds)
        found.append(limit.seconds)
    assert [120.0, 500.0, 500.0, 3600.0] == found


def test_a_machine_that_has_become_slow_loads_in_the_end() -> None:
    """Each load that overran doubles the limit, up to the operator's, until one ends well."""
    limit = _limit()
    limit.loaded(30.0)
    found = []
    for _ in range(5):
        limit.overran()
        found.append(limit.seconds)
    assert [600.0, 1200.0, 2400.0, 3600.0, 3600.0] == found
    limit.loaded(40.0)
    assert 400.0 == limit.seconds


def test_an_operators_limit_below_the_least_holds() -> None:
    """It is a limit also where the margin would be more."""
    limit = LoadLimit(5.0, least_seconds=120.0, margin=10.0)
    limit.loaded(1.0)
    assert 5.0 == limit.seconds
