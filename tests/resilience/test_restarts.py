"""The restart policy."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlx_pharos.resilience.restarts import RestartPolicy


def test_waits_double_up_to_the_longest() -> None:
    """Each death in the window doubles the wait."""
    policy = RestartPolicy(limit=9, first_delay_seconds=1.0, longest_delay_seconds=5.0)
    assert [1.0, 2.0, 4.0, 5.0, 5.0] == [policy.after_death(float(now)) for now in range(5)]


def test_gives_up_after_the_limit() -> None:
    """Three restarts in the window, not four."""
    policy = RestartPolicy(limit=3, window_seconds=60.0)
    assert [False, False, False, True] == [policy.after_death(now) is None for now in (0, 1, 2, 3)]


def test_old_deaths_are_forgotten() -> None:
    """What is longer ago than the window counts no more, and the wait is short again."""
    policy = RestartPolicy(limit=1, window_seconds=60.0, first_delay_seconds=1.0)
    assert [1.0, 1.0, None] == [policy.after_death(now) for now in (0.0, 61.0, 100.0)]


@given(st.lists(st.floats(0, 50), max_size=30), st.integers(0, 4))
def test_restarts_in_any_window_are_bounded(gaps: list[float], limit: int) -> None:
    """However deaths are spread, no window holds more restarts than the limit."""
    policy = RestartPolicy(limit=limit, window_seconds=60.0)
    now, restarts = 0.0, []
    for gap in gaps:
        now += gap
        if policy.after_death(now) is not None:
            restarts.append(now)
    for begin in restarts:
        assert len([at for at in restarts if begin <= at <= begin + 60.0]) <= max(limit, 1)
