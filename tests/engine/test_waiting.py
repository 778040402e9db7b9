"""The queue of the engine: who waits, and whose turn is next."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_pharos.engine.protocol import Submit, TextPrompt
from mlx_pharos.engine.worker.sequence import Request, Sequence
from mlx_pharos.engine.worker.waiting import WaitingSequences
from support.engine import GREEDY


def request_of(tenant: int, number: int, n: int = 1) -> tuple[Request, list[Sequence]]:
    """Make a request as the scheduler does."""
    submit = Submit(
        id=number,
        prompt=TextPrompt("x"),
        sampling=GREEDY,
        n=n,
        max_tokens=1,
        stop=(),
        logprobs=False,
        top_logprobs=0,
        submitted_at=0.0,
        tenant=tenant,
    )
    request = Request(submit=submit, tokens=[1], max_tokens=1, accepted_at=0.0)
    assembler: Any = None
    sequences = [Sequence(request, choice, assembler) for choice in range(n)]
    request.live = set(sequences)
    return request, sequences


def test_tenants_take_turns_and_each_is_served_in_order() -> None:
    """One that floods waits behind the first of everybody else."""
    waiting = WaitingSequences()
    for number in range(10):
        waiting.append(request_of(1, number)[1][0])
    for number in range(100, 102):
        waiting.append(request_of(2, number)[1][0])
    order = [waiting.pop().request.id for _ in range(12)]

    assert [0, 100, 1, 101, 2, 3, 4, 5, 6, 7, 8, 9] == order
    with pytest.raises(IndexError):
        waiting.pop()


def test_further_choices_go_ahead_of_what_came_later() -> None:
    """In their order, and of their own tenant alone."""
    waiting = WaitingSequences()
    _, (_, *followers) = request_of(1, 0, n=3)
    for number in range(1, 3):
        waiting.append(request_of(1, number)[1][0])
    waiting.put_first(followers)
    assert followers[0] is waiting.peek()

    assert [(0, 1), (0, 2), (1, 0), (2, 0)] == [
        (popped.request.id, popped.choice) for popped in (waiting.pop() for _ in range(4))
    ]


CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 3)),
        st.tuples(st.just("first"), st.integers(0, 3)),
        st.tuples(st.just("pop"), st.just(0)),
        st.tuples(st.just("remove"), st.integers(0, 30)),
    ),
    max_size=60,
)


@given(CALLS)
def test_it_is_a_fair_queue(calls: list[tuple[str, int]]) -> None:
    """Against a plain model: nothing is lost or doubled, and nobody is passed over twice.

    Between a tenant's becoming the one that waits and its turn, no other
    tenant is served more than once.
    """
    waiting = WaitingSequences()
    lanes: dict[int, list[Sequence]] = {}
    requests: list[Request] = []
    served_since: dict[int, list[int]] = {}
    for number, (call, value) in enumerate(calls):
        if call in {"append", "first"}:
            request, sequences = request_of(value, number, n=1 if call == "append" else 2)
            requests.append(request)
            lane = lanes.setdefault(value, [])
            if not lane:
                served_since[value] = []
            if call == "append":
                waiting.append(sequences[0])
                lane += sequences
            else:
                waiting.put_first(sequences)
                lane[:0] = sequences
        elif call == "remove" and requests:
            gone = requests.pop(value % len(requests))
            waiting.remove(gone)
            for lane in lanes.values():
                lane[:] = [kept for kept in lane if kept.request is not gone]
        elif call == "pop" and any(lanes.values()):
            sequence = waiting.pop()
            tenant = sequence.request.submit.tenant
            assert sequence is lanes[tenant].pop(0)
            served_since[tenant] = []
            for other, lane in lanes.items():
                if other != tenant and lane:
                    assert tenant not in served_since[other]
                    served_since[other].append(tenant)
        assert sum(map(len, lanes.values())) == len(waiting)
