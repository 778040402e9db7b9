"""Admission: places, fair shares, and when to come back."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_pharos.resilience.admission import Admission
from mlx_pharos.resilience.errors import InvalidRequestError, QueueFullError
from mlx_pharos.resilience.service_rate import RetryAdvice, ServiceRate
from support.clock import SimulatedClock

if TYPE_CHECKING:
    from mlx_pharos.resilience.reservation import Reservation


def refused(admission: Admission, places: int = 1, tenant: int = 0) -> float:
    """Be refused, and return when to come back."""
    with pytest.raises(QueueFullError) as caught:
        admission.take(places, tenant)
    assert caught.value.retry_after is not None
    return caught.value.retry_after


def test_more_than_there_is_can_never_be_taken() -> None:
    """A request that never fits is told so, and leaves nothing behind."""
    admission = Admission(max_batch=2, max_queue=2)
    with pytest.raises(InvalidRequestError):
        admission.take(5)
    admission.take(4)
    assert 4 == admission.taken


def test_those_who_are_refused_are_told_to_come_one_after_the_other() -> None:
    """At 2 s a place the third refusal is told 6 s: nobody comes when there is no place yet."""
    clock = SimulatedClock()
    admission = Admission(max_batch=2, max_queue=2, clock=clock)
    admission.take(4)
    for _ in range(100):
        clock.now += 2.0
        admission.release(1)
        admission.take(1)
    assert [2.0, 4.0, 6.0] == [round(refused(admission), 6) for _ in range(3)]
    clock.now += 4.0
    admission.release(1)
    admission.take(1)
    assert 6.0 > refused(admission)


def test_the_advice_is_bounded_and_grows_while_nothing_is_freed() -> None:
    """Between 1 and 60 s, however fast or slow the server was or however many are refused."""
    clock = SimulatedClock()
    admission = Admission(max_batch=1, max_queue=0, clock=clock)
    admission.take(1)
    assert 1.0 == refused(admission)
    clock.now += 30.0
    assert 30.0 <= refused(admission) <= 60.0
    assert [60.0] * 50 == [refused(admission) for _ in range(50)]
    for _ in range(200):
        admission.release(1)
        clock.now += 0.0001
        admission.take(1)
    clock.now += 100.0
    admission.release(1)
    admission.take(1)


def test_idle_time_says_nothing_of_the_speed() -> None:
    """Only intervals in which the batch was full are measured."""
    rate = ServiceRate()
    rate.note(0.0, freed=0, saturated=True)
    rate.note(0.5, freed=1, saturated=False)
    rate.note(500.0, freed=1, saturated=False)
    rate.note(1000.0, freed=0, saturated=True)
    assert 0.5 == rate.seconds_per_place(1000.0)
    assert 7.0 == rate.seconds_per_place(1007.0)


def test_a_flooding_tenant_leaves_room_for_others() -> None:
    """It gets four fifths of the places; one that holds nothing is then taken."""
    admission = Admission(max_batch=4, max_queue=16)
    for _ in range(16):
        admission.take(1, 1)
    with pytest.raises(QueueFullError, match="share"):
        admission.take(1, 1)
    admission.take(1, 2)
    refused(admission, tenant=1)
    admission.release(1, 2)
    for _ in range(16):
        admission.release(1, 1)
    assert 0 == admission.taken


@given(
    st.integers(1, 8),
    st.integers(0, 16),
    st.lists(st.tuples(st.booleans(), st.integers(1, 4), st.integers(0, 5)), max_size=80),
)
def test_the_bound_holds_and_nothing_leaks(
    batch: int, queue: int, calls: list[tuple[bool, int, int]]
) -> None:
    """Whatever is taken and released: never more than there is, and all is free at the end."""
    admission = Admission(max_batch=batch, max_queue=queue)
    held: list[tuple[int, int]] = []
    for take, places, tenant in calls:
        if take:
            holds_none = not any(whose == tenant for _, whose in held)
            before = admission.taken
            try:
                admission.take(places, tenant)
                held.append((places, tenant))
            except QueueFullError:
                assert not (before + places <= batch + queue and (holds_none or tenant == 0))
            except InvalidRequestError:
                assert places > batch + queue
        elif held:
            admission.release(*held.pop(0))
        assert sum(places for places, _ in held) == admission.taken <= batch + queue
    for each in held:
        admission.release(*each)
    assert 0 == admission.taken
    assert {} == admission._held


@given(
    st.integers(1, 4),
    st.integers(0, 6),
    st.lists(
        st.tuples(st.sampled_from(["reserve", "take", "end", "release"]), st.integers(1, 3)),
        max_size=60,
    ),
)
def test_a_place_is_kept_until_it_is_taken_or_given_back(
    batch: int, queue: int, calls: list[tuple[str, int]]
) -> None:
    """A reservation counts once, and is no reason to refuse one who wants what is free."""
    admission, capacity = Admission(max_batch=batch, max_queue=queue), batch + queue
    kept: list[Reservation] = []
    held: list[int] = []
    for what, places in calls:
        free = capacity - sum(held)
        if what == "reserve":
            reservation = admission.reserve()
            assert (reservation is not None) == (free > len(kept))
            kept += [reservation] if reservation else []
        elif what == "take" and kept and places <= capacity:
            fits, reservation = places <= free, kept.pop(0)
            with nullcontext() if fits else pytest.raises(QueueFullError):
                admission.take(places, 0, reservation)
            held += [places] if fits else []
            reservation.end()  # which has nothing left to give back
        elif what == "end" and kept:
            ending = kept.pop(0)
            ending.end()
            ending.end()
        elif what == "release" and held:
            admission.release(held.pop(0))
        assert sum(held) == admission.taken <= capacity
    for each in kept:
        each.end()
    for places in held:
        admission.release(places)
    admission.take(capacity)
    assert admission.reserve() is None


def test_who_wants_many_is_not_refused_for_those_who_were_read_meanwhile() -> None:
    """Of 20 that want four of 20 places each, the first five get them."""
    admission = Admission(max_batch=4, max_queue=16)
    kept = [admission.reserve() for _ in range(20)]
    for each in kept[:5]:
        admission.take(4, 0, each)
    assert 20 == admission.taken
    for each in kept[5:]:
        with pytest.raises(QueueFullError, match="limit of 20 places"):
            admission.take(4, 0, each)


def test_who_has_no_key_is_not_told_of_its_share() -> None:
    """Though a place has become free since it was found that there was none."""
    admission = Admission(max_batch=1, max_queue=0)
    assert "limit of 1 places" in str(admission.refusal())


def test_a_reservation_counts_in_its_tenants_share() -> None:
    """Requests of one tenant that are being read leave room for another's, too."""
    admission = Admission(max_batch=4, max_queue=16)
    kept = [admission.reserve(1) for _ in range(17)]
    assert [True] * 16 + [False] == [each is not None for each in kept]
    assert admission.reserve(2) is not None


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 64), st.floats(0, 1000)), max_size=50))
def test_advice_is_always_within_its_bounds(refusals: list[tuple[float, int, float]]) -> None:
    """OpenAI's clients wait 60 s at most, and 0 would be no wait."""
    advice, now = RetryAdvice(), 0.0
    for passed, places, seconds in refusals:
        now += passed
        assert 1 <= advice.after_refusal(now, places=places, seconds_per_place=seconds) <= 60
