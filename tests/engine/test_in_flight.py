"""Requests in flight through any order of tokens, deaths, restarts and cancellations."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_pharos.engine.flight import Flight, Stage
from mlx_pharos.engine.generation import Generation
from mlx_pharos.engine.in_flight import InFlight
from mlx_pharos.engine.protocol import (
    Accepted,
    Cancel,
    Delta,
    Finish,
    RequestEvent,
    Started,
    Submit,
    TokenPrompt,
)
from mlx_pharos.resilience.restarts import RestartPolicy
from support.engine import GREEDY

if TYPE_CHECKING:
    from mlx_pharos.engine.protocol import ToEngine

_BUDGET = 2


def _token(request_id: int, choice: int, position: int) -> int:
    """What greedy decoding gives: it depends on what came before, and on nothing else."""
    return request_id * 10_000 + choice * 1000 + position


@dataclass
class _Running:
    """A request in the engine of the model."""

    submit: Submit
    stage: Stage = Stage.SENT
    done: dict[int, int] = field(default_factory=dict)
    """Tokens of each choice that has not ended."""


class _Engine:
    """Does with a request what the worker promises to do, one event at a time."""

    def __init__(self, killers: set[int]) -> None:
        self.requests: dict[int, _Running] = {}
        self._killers = killers

    def write(self, message: ToEngine) -> None:
        """Take a message from the server."""
        if isinstance(message, Submit):
            assert message.id not in self.requests
            resumed = message.resumed or ((),) * message.n
            live = {c: len(resumed[c]) for c in range(message.n) if c not in message.ended}
            assert live, "a request that had ended was sent again"
            self.requests[message.id] = _Running(message, done=live)
        elif isinstance(message, Cancel):
            self.requests.pop(message.id, None)

    def advance(self, random: Random) -> list[RequestEvent] | None:
        """Return what one random request brings; None where it kills the engine."""
        request_id = random.choice(sorted(self.requests))
        request = self.requests[request_id]
        if request.stage is Stage.SENT:
            request.stage = Stage.WAITING
            return [Accepted(request_id, 3, 1.0)]
        if request.stage is Stage.WAITING:
            request.stage = Stage.RUNNING
            return [Started(request_id, min(request.done), 2.0)]
        if request_id in self._killers:
            return None
        choice = random.choice(sorted(request.done))
        position = request.done[choice]
        request.done[choice] += 1
        token = _token(request_id, choice, position)
        events: list[RequestEvent] = [Delta(request_id, choice, (token,), f"{token} ", ())]
        if position + 1 == request.submit.max_tokens:
            del request.done[choice]
            finish = (3, 0, position + 1, 1.0, 2.0, 3.0, 4.0)
            events.append(Finish(request_id, choice, "length", *finish))
            if not request.done:
                del self.requests[request_id]
        return events


class _World:
    """The server's side: what the engine client does with the table, and what a client sees."""

    def __init__(self, random: Random, killers: set[int]) -> None:
        self.random = random
        self.killers = killers
        self.table = InFlight(crash_budget=_BUDGET)
        self.engine: _Engine | None = None
        self.texts: dict[tuple[int, int], list[int]] = {}
        self.finished: list[tuple[int, int]] = []
        self.errors: list[int] = []
        self.flights: dict[int, Flight] = {}
        self.cancelled: set[int] = set()
        self.now = 0.0
        self.deaths = 0
        self.restarts = RestartPolicy(window_seconds=1e9)
        self.given_up = False

    def submit(self, request_id: int) -> None:
        n, length = self.random.randint(1, 3), self.random.randint(1, 9)
        submit = Submit(
            request_id, TokenPrompt((1,)), GREEDY, n, length, (), False, 0, 0.0
        )  # fmt: skip
        generation = Generation(request_id, n=n, cancel=lambda _: None, pace=lambda: 0.0)
        flight = Flight(submit, generation, places=n)
        self.flights[request_id] = flight
        assert self.table.add([flight])
        self.send()

    def send(self) -> None:
        if self.engine is not None:
            self.table.send(self.engine.write)

    def start(self) -> None:
        if self.engine is None:
            self.engine = _Engine(self.killers)
            self.table.open()
            self.send()

    def die(self) -> None:
        if self.engine is None:
            return
        self.engine = None
        self.deaths += 1
        self.now += 1.0
        verdict = self.table.interrupt("SIGKILL", self.now)
        self.errors += [flight.id for flight in verdict.convicted]
        self.given_up |= self.restarts.after_death(self.now, verdict.pardoned) is None
        assert {flight.id for flight in verdict.left} <= self.cancelled

    def cancel(self) -> None:
        live = [each for each in self.flights if self.table.get(each)]
        if live:
            chosen = self.random.choice(live)
            self.cancelled.add(chosen)
            write = self.engine.write if self.engine else _refuse
            self.table.cancel(chosen, write, Cancel(chosen))
            flight = self.table.get(chosen)
            if flight is not None and self.engine is not None:
                self.table.remove(flight)  # the engine says that it is cancelled
            self.send()

    def advance(self) -> None:
        if self.engine is None or not self.engine.requests:
            return
        events = self.engine.advance(self.random)
        if events is None:
            self.die()
            return
        for event in events:
            flight = self.table.get(event.id)
            assert flight is not None
            if isinstance(event, Delta):
                flight.grow(event, 5.0)
                self.texts.setdefault((event.id, event.choice), []).extend(event.tokens)
                if flight.suspect and self.table.acquit(flight):
                    self.send()
                continue
            told = flight.take(event)
            if isinstance(told, Finish):
                self.finished.append((told.id, told.choice))
                flight.places -= 1
                if flight.places == 0:
                    self.table.remove(flight)
            if self.table.due:
                self.send()

    def check(self) -> None:
        """Each choice ended once or its request did, and its text is the only one there is."""
        assert not len(self.table)
        assert len(self.finished) == len(set(self.finished))
        assert len(self.errors) == len(set(self.errors))
        for request_id, flight in self.flights.items():
            for choice in range(flight.submit.n):
                got = self.texts.get((request_id, choice), [])
                whole = [
                    _token(request_id, choice, each) for each in range(flight.submit.max_tokens)
                ]
                assert whole[: len(got)] == got
                if (request_id, choice) in self.finished:
                    assert whole == got
                else:
                    assert (request_id in self.errors) != (request_id in self.cancelled)


def _refuse(_: ToEngine) -> None:
    message = "there is no engine to write to"
    raise AssertionError(message)


@given(st.integers(0, 2**32), st.lists(st.sampled_from("saaaaaaaaadc"), max_size=150))
def test_every_request_has_one_end_and_one_text(seed: int, story: list[str]) -> None:
    """Tokens, deaths at any place, restarts, cancellations: nothing is lost, doubled or invented."""
    world = _World(Random(seed), set())
    ids = itertools.count(1)
    world.start()
    for act in story:
        if act == "s":
            world.submit(next(ids))
        elif act == "d":
            world.die()
        elif act == "c":
            world.cancel()
        else:
            world.start()
            world.advance()
    while len(world.table):
        world.start()
        world.advance()
    world.check()


@given(st.integers(0, 2**32), st.integers(1, 8), st.sets(st.integers(1, 8), max_size=3))
def test_killers_are_found_and_nobody_else(seed: int, count: int, killers: set[int]) -> None:
    """Each kills every engine that works on it: they end with an error after three deaths each,
    all others finish, and the default number of restarts is enough.
    """
    world = _World(Random(seed), killers)
    for request_id in range(1, count + 1):
        world.submit(request_id)
    while len(world.table):
        world.start()
        world.advance()
    world.check()
    present = sorted(each for each in killers if each <= count)
    assert present == sorted(world.errors)
    assert world.deaths <= 3 * len(present)
    assert not world.given_up


@pytest.mark.parametrize("count", [1, 2])
def test_the_cause_is_known_where_one_was_alone(count: int) -> None:
    """What the engine was killed for from outside would else be refused for a minute."""
    world = _World(Random(0), set())
    for request_id in range(count):
        world.submit(request_id)
    world.start()
    for death in range(_BUDGET + 1):
        for flight in world.flights.values():
            flight.stage = Stage.RUNNING  # all are past their trials
        world.table._trial = None
        verdict = world.table.interrupt("SIGKILL", float(death))
        assert len(verdict.convicted) == (count if death == _BUDGET else 0)
        world.table.open()
        world.table.send(lambda _: None)
    assert verdict.pardoned == (frozenset({0.0, 1.0, 2.0}) if count == 1 else frozenset())
