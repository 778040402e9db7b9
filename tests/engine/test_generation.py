"""When a stream is looked at: once in each pace, each call at a moment of its own."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from mlx_pharos.engine import generation
from mlx_pharos.engine.generation import Generation, phase_of
from mlx_pharos.engine.protocol import Delta

if TYPE_CHECKING:
    from collections.abc import Callable

PACE = 0.025


class Clock:
    """Time that passes in sleeps alone, and when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.01
        self.slept: list[float] = []

    def monotonic(self) -> float:
        """The time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let it pass."""
        assert seconds >= 0
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The only clock of generations."""
    made = Clock()
    monkeypatch.setattr(
        generation, "time", SimpleNamespace(monotonic=made.monotonic, sleep=made.sleep)
    )
    return made


def _stream(phase: float, pace: Callable[[], float] = lambda: PACE) -> Generation:
    return Generation(1, n=1, cancel=lambda _: None, pace=pace, phase=phase)


def _look(stream: Generation) -> None:
    stream.deliver(Delta(id=1, choice=0, text="x", tokens=(1,), logprobs=()))
    assert stream.receive(0.0)


@pytest.mark.parametrize("phase", [0.0, 0.3, 0.99])
def test_a_stream_is_looked_at_once_in_each_pace(clock: Clock, phase: float) -> None:
    """The first look is at once; the next ones lie a pace apart, though each takes its time."""
    stream = _stream(phase)
    looks = []
    for _ in range(20):
        _look(stream)
        looks.append(clock.now)
        clock.now += 0.004
    assert looks[0] == 1000.01
    assert all(seconds <= PACE for seconds in clock.slept)
    gaps = [after - before for before, after in itertools.pairwise(looks[1:])]
    assert gaps == pytest.approx([PACE] * len(gaps), abs=1e-6)
    assert (looks[-1] / PACE - phase + 0.5) % 1.0 == pytest.approx(0.5, abs=1e-6)


def test_streams_that_begin_together_look_apart(clock: Clock) -> None:
    """Of 32 calls no two look within a hundredth of a pace; 2 % is what even distances allow twice."""
    moments = []
    for number in range(32):
        clock.now = 1000.01
        stream = _stream(phase_of(number))
        _look(stream)
        _look(stream)
        moments.append(clock.now % PACE / PACE)
    moments.sort()
    assert min(b - a for a, b in itertools.pairwise(moments)) > 0.01


def test_the_prompts_of_a_call_are_looked_at_in_one_pace(clock: Clock) -> None:
    """One thread looks at each in turn; only the first one of a round waits."""
    streams = [_stream(0.4) for _ in range(5)]
    for _ in range(10):
        clock.slept.clear()
        for stream in streams:
            _look(stream)
            clock.now += 0.0005
        assert len(clock.slept) <= 1


def test_without_a_pace_nobody_waits(clock: Clock) -> None:
    """As long as the server has no other stream to think of."""
    stream = _stream(0.5, pace=lambda: 0.0)
    for _ in range(5):
        _look(stream)
    assert not clock.slept
