"""When silence counts as a hang."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlx_pharos.resilience.hang import HangDetector, Health


def _looks(detector: HangDetector, times: range, *, pending: bool = True) -> list[Health]:
    return [detector.look(float(now), progress=0, pending=pending) for now in times]


def test_silence_with_work_is_asked_about_and_then_a_hang() -> None:
    """Eight looks in the limit: from the half on the engine is asked, at the limit it is hung."""
    found = _looks(HangDetector(8.0), range(10))
    assert [Health.FINE] * 4 == found[:4]
    assert [Health.SILENT] * 4 == found[4:8]
    assert [Health.HUNG] * 2 == found[8:]


def test_silence_without_work_is_none() -> None:
    """However long; the clock starts when there is something to do."""
    detector = HangDetector(8.0)
    assert {Health.FINE} == {*_looks(detector, range(100), pending=False)}
    assert Health.FINE is detector.look(101.0, progress=0, pending=True)


def test_time_in_which_nobody_could_look_does_not_count() -> None:
    """A machine that slept, or a server that was stopped, is not the engine's fault."""
    detector = HangDetector(8.0)
    _looks(detector, range(2))
    assert Health.FINE is detector.look(5000.0, progress=0, pending=True)


@given(st.lists(st.tuples(st.floats(0.01, 1.0), st.booleans()), min_size=1, max_size=200))
def test_a_hang_is_the_limit_without_progress(steps: list[tuple[float, bool]]) -> None:
    """Slow but moving is never hung; silent for longer than the limit always is."""
    detector = HangDetector(8.0)
    now = progress = 0.0
    detector.look(now, progress=progress, pending=True)
    since = now
    for seconds, moves in steps:
        now += seconds
        if moves:
            progress += 1
            since = now
        health = detector.look(now, progress=progress, pending=True)
        assert (health is Health.HUNG) == (now - since >= 8.0) or abs(now - since - 8.0) < 1e-6
