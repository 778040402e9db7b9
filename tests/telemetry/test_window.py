"""The rolling window: percentiles, rates and totals, on a clock that the test moves."""

from __future__ import annotations

import math
import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider

from mlx_pharos.telemetry.instruments import Instruments
from mlx_pharos.telemetry.window import SLICE_SECONDS, WINDOW_SECONDS, WindowReader

SHARES = (0.5, 0.95, 0.99)


class _Clocked:
    """A window with its instruments and its clock."""

    def __init__(self, start: float = 12345.0) -> None:
        self.now = start
        self.reader = WindowReader(
            histogram="gen_ai.server.request.duration",
            counts=lambda attributes: attributes.get("error.type") != "refused",
            clock=lambda: self.now,
        )
        provider = MeterProvider(metric_readers=[self.reader], shutdown_on_exit=False)
        instruments = Instruments(provider.get_meter("test"))
        self.reader.follow(instruments.folded)
        self._latency = instruments.gen_ai_request_duration
        self._other = instruments.http_request_duration

    def record(self, seconds: float, error: str = "") -> None:
        """Record a request as the recorder does."""
        self.reader.advance()
        self._latency.at({"error.type": error} if error else {"model": "m"}).fold(seconds)
        self._other.at({}).fold(1e9)
        self.reader.count()


def _exact(values: list[float], share: float) -> float:
    return sorted(values)[max(1, math.ceil(share * len(values))) - 1]


@settings(max_examples=10)
@given(
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(["pareto", "lognormal", "bimodal"]),
    tail=st.floats(0.6, 3.0),
)
def test_percentiles_are_within_one_percent(seed: int, kind: str, tail: float) -> None:
    """For 10,000 samples of a heavy-tailed distribution, spread over slices, every percentile is
    within 1 % of the exact one.
    """
    draw = random.Random(seed)
    window = _Clocked()
    values = []
    for number in range(10_000):
        match kind:
            case "pareto":
                value = 0.005 * draw.paretovariate(tail)
            case "lognormal":
                value = draw.lognormvariate(-1.0, tail)
            case _:
                value = draw.choice((draw.gauss(0.02, 0.001), draw.gauss(300.0, 10.0)))
        value = min(abs(value), 86_400.0)
        values.append(value)
        window.record(value)
        if number % 500 == 0:
            window.now += SLICE_SECONDS
    found = window.reader.read().latencies.percentiles(*SHARES)
    for share, value in zip(SHARES, found, strict=True):
        assert value == pytest.approx(_exact(values, share), rel=0.01)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("record"), st.floats(1e-6, 1e5)),
        st.tuples(st.just("refuse"), st.floats(1e-6, 1e5)),
        st.tuples(st.just("pass"), st.floats(0.0, 400.0)),
        st.tuples(st.just("read"), st.just(0.0)),
    ),
    max_size=60,
)


@settings(max_examples=100)
@given(steps=STEPS, start=st.floats(0.0, 1e6))
def test_window_and_totals_hold_across_borders_and_gaps(
    steps: list[tuple[str, float]], start: float
) -> None:
    """Whatever the gaps, a poll sees exactly the records of the slices within the window, and the
    total counts every record once.
    """
    window = _Clocked(start)
    history: list[tuple[float, float, str]] = []
    for action, value in [*steps, ("read", 0.0)]:
        if action == "pass":
            window.now += value
        elif action == "read":
            _check(window, history)
        else:
            error = "refused" if action == "refuse" else ""
            window.record(value, error)
            history.append((window.now, value, error))


def _check(window: _Clocked, history: list[tuple[float, float, str]]) -> None:
    oldest = (window.now // SLICE_SECONDS - WINDOW_SECONDS // SLICE_SECONDS + 1) * SLICE_SECONDS
    recent = [each for each in history if each[0] >= oldest]
    values = [value for _, value, error in recent if not error]
    seen = window.reader.read()
    assert (len(history), len(recent), len(values)) == (
        seen.total,
        seen.count,
        seen.latencies.count,
    )
    assert WINDOW_SECONDS - SLICE_SECONDS <= window.now - oldest <= WINDOW_SECONDS + 1e-6
    assert 0 <= seen.seconds <= WINDOW_SECONDS + 1e-6
    for share in SHARES:
        expected = _exact(values, share) if values else 0.0
        (found,) = seen.latencies.percentiles(share)
        assert found == pytest.approx(expected, rel=0.01)


def test_a_steady_rate_is_that_rate() -> None:
    """One request a second reads as one a second, in the first minute and hours later."""
    window = _Clocked()
    for second in range(4000):
        window.record(0.1)
        window.now += 1.0
        if second in {30, 299, 300, 305, 3999}:
            assert window.reader.read().per_second == pytest.approx(1.0, rel=0.04)


def test_an_idle_window_is_empty_and_the_total_stays() -> None:
    """Five minutes after the last request nothing of it is left but the total."""
    window = _Clocked()
    window.record(2.0)
    window.now += WINDOW_SECONDS
    seen = window.reader.read()
    assert (1, 0, 0, 0.0) == (seen.total, seen.count, seen.latencies.count, seen.per_second)
    assert (0.0, 0.0, 0.0) == seen.latencies.percentiles(*SHARES)


def test_a_record_that_nobody_polled_for_is_in_the_slice_of_its_time() -> None:
    """What was recorded long before the first poll does not look recent."""
    window = _Clocked()
    window.record(5.0)
    window.now += 200.0
    window.record(1.0)
    window.now += 150.0
    seen = window.reader.read()
    assert (2, 1) == (seen.total, seen.count)
    assert seen.latencies.percentiles(0.5)[0] == pytest.approx(1.0, rel=0.01)


def test_memory_does_not_grow_with_requests() -> None:
    """Further requests replace those that left the window, and take no more memory."""
    draw = random.Random(5)
    window = _Clocked()

    def run(count: int) -> None:
        for _ in range(count):
            window.record(draw.lognormvariate(0, 1))
            window.now += 0.1

    run(10_000)
    tracemalloc.start()
    run(500)
    before, _ = tracemalloc.get_traced_memory()
    run(10_000)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 1_000_000
