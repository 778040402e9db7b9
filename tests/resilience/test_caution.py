"""How much smaller an engine starts after deaths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_pharos.resilience.caution import Caution


@pytest.mark.parametrize(
    "ending", ["SIGKILL", "SIGSEGV", "SIGABRT", "SIGBUS", "hang", "out_of_memory"]
)
def test_each_death_that_size_may_have_caused_halves_the_limits(ending: str) -> None:
    """A half, a quarter, an eighth, and no less."""
    caution = Caution(spell_seconds=30.0)
    found = []
    for _ in range(4):
        caution.died(ending, 0.0, explained=False)
        found.append(caution.halvings)
    assert [1, 2, 3, 3] == found


def test_another_exit_and_a_death_with_a_known_cause_change_nothing() -> None:
    """Neither says anything of the size."""
    caution = Caution()
    caution.died("exit code 1", 0.0, explained=False)
    caution.died("SIGSEGV", 1.0, explained=True)
    assert 0 == caution.halvings


def test_a_life_without_trouble_gives_back_a_doubling_per_spell() -> None:
    """As the engine itself grows back meanwhile."""
    caution = Caution(spell_seconds=30.0)
    for _ in range(3):
        caution.died("SIGKILL", 0.0, explained=False)
    caution.started(100.0)
    caution.died("exit code 1", 165.0, explained=False)
    assert 1 == caution.halvings


@given(
    st.lists(
        st.tuples(
            st.floats(0, 200),
            st.sampled_from(["SIGKILL", "out_of_memory", "exit code 1"]),
            st.booleans(),
        )
    )
)
def test_the_limits_stay_between_an_eighth_and_all(
    lives: list[tuple[float, str, bool]],
) -> None:
    """However engines live and die; and a long quiet life ends all caution."""
    caution = Caution(spell_seconds=30.0)
    now = 0.0
    for seconds, ending, explained in lives:
        caution.started(now)
        now += seconds
        caution.died(ending, now, explained=explained)
        assert 0 <= caution.halvings <= 3
    caution.started(now)
    caution.died("exit code 1", now + 91.0, explained=False)
    assert 0 == caution.halvings
