"""The breaker: off after five errors in a row, on after ten requests without it and one probe."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mlx_pharos.resilience.breaker import Breaker, BreakerState, BreakerTransition

if TYPE_CHECKING:
    from collections.abc import Callable

_THREADS = 8


def _open(breaker: Breaker) -> None:
    for _ in range(5):
        breaker.record_failure()


def _half_open(breaker: Breaker) -> None:
    _open(breaker)
    for _ in range(10):
        breaker.record_served_without()


class _Model(RuleBasedStateMachine):
    """A breaker beside a model of it: three numbers and a word."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[BreakerTransition] = []
        self.breaker = Breaker(
            "b", failure_threshold=3, recovery_threshold=4, listener=self.told.append
        )
        self.state, self.failures, self.count, self.probing = "closed", 0, 0, False
        self.path: list[str] = []

    def _go(self, state: str) -> None:
        self.state, self.failures, self.count, self.probing = state, 0, 0, False
        self.path.append(state)

    @rule()
    def failure(self) -> None:
        """An error counts while it is closed, and the third of a row opens it."""
        self.breaker.record_failure()
        if self.state == "closed":
            self.failures += 1
            if self.failures == 3:
                self._go("open")

    @rule()
    def success(self) -> None:
        """A success ends the row of errors."""
        self.breaker.record_success()
        self.failures = 0

    @rule(times=st.integers(1, 4))
    def served(self, times: int) -> None:
        """Requests without the part count while it is open."""
        for _ in range(times):
            self.breaker.record_served_without()
            if self.state == "open":
                self.count += 1
                if self.count == 4:
                    self._go("half_open")

    @rule()
    def begin_probe(self) -> None:
        """One caller gets the probe, and only when one is due."""
        expected = self.state == "half_open" and not self.probing
        assert expected == self.breaker.begin_probe()
        self.probing |= expected

    @rule(verified=st.booleans())
    def end_probe(self, verified: bool) -> None:
        """The probe decides."""
        self.breaker.end_probe(verified=verified)
        if self.probing:
            self._go("closed" if verified else "open")

    @rule()
    def abandon_probe(self) -> None:
        """A probe that could not be made decides nothing."""
        self.breaker.abandon_probe()
        self.probing = False

    @invariant()
    def agree(self) -> None:
        """The states agree, and every change was told, in order, with where it came from."""
        assert self.state == self.breaker.state
        assert (self.state == "closed") == self.breaker.is_closed
        assert self.path == [change.to for change in self.told]
        assert ["closed", *self.path][:-1] == [change.origin for change in self.told]
        assert [*range(1, len(self.path) + 1)] == [change.number for change in self.told]
        assert {state: self.path.count(state) for state in BreakerState} == (
            self.breaker.transitions
        )


TestBreakerAgainstItsModel = _Model.TestCase
TestBreakerAgainstItsModel.settings = settings(max_examples=100, stateful_step_count=40)


def test_defaults_are_five_errors_and_ten_requests() -> None:
    """The fifth error opens it, the tenth request makes a probe due, the probe closes it."""
    breaker = Breaker("prompt_cache")
    for _ in range(4):
        breaker.record_failure()
    assert breaker.is_closed
    breaker.record_failure()
    assert BreakerState.OPEN == breaker.state
    for _ in range(9):
        breaker.record_served_without()
    assert not breaker.begin_probe()
    breaker.record_served_without()
    assert breaker.begin_probe()
    breaker.end_probe(verified=True)
    assert breaker.is_closed


def test_errors_with_a_success_between_do_not_open_it() -> None:
    """Four errors, a success, four errors: in a row means in a row."""
    breaker = Breaker("prompt_cache")
    for _ in range(3):
        for _ in range(4):
            breaker.record_failure()
        breaker.record_success()
    assert breaker.is_closed


def _note(answers: list[bool], ask: Callable[[], bool]) -> None:
    answers.append(ask())


def _at_once(act: Callable[[], None]) -> None:
    """Run ``act`` in eight threads that begin together, and wait for all."""
    start = threading.Barrier(_THREADS)

    def run() -> None:
        start.wait(10)
        act()

    threads = [threading.Thread(target=run) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_one_of_eight_threads_gets_the_probe() -> None:
    """However many ask at once, exactly one may probe; in 50 rounds."""
    for _ in range(50):
        breaker = Breaker("prompt_cache")
        _half_open(breaker)
        granted: list[bool] = []
        ask = breaker.begin_probe
        _at_once(functools.partial(_note, granted, ask))
        assert [True] == [each for each in granted if each]


def test_eight_threads_lose_and_double_no_count() -> None:
    """Eight threads bring exactly the thousandth error, and one change is told, once."""
    told: list[BreakerTransition] = []
    breaker = Breaker("b", failure_threshold=8 * 250, listener=told.append)

    def fail() -> None:
        for _ in range(249):
            breaker.record_failure()

    _at_once(fail)
    for _ in range(7):
        breaker.record_failure()
    assert breaker.is_closed
    breaker.record_failure()
    assert [BreakerState.OPEN] == [change.to for change in told]


def test_a_listener_may_use_the_breaker() -> None:
    """Telling happens without the lock: a listener that asks and records does not hang."""
    seen: list[str] = []

    def listener(change: BreakerTransition) -> None:
        breaker.record_failure()
        seen.append(f"{change.to}: {breaker.state}, {breaker.transitions[change.to]}")

    breaker = Breaker("b", listener=listener)
    _open(breaker)
    assert ["open: open, 1"] == seen


def test_thresholds_are_positive() -> None:
    """A breaker that opens by itself is a mistake of whoever makes it."""
    with pytest.raises(ValueError, match="at least 1"):
        Breaker("b", failure_threshold=0)
