"""Who encodes a batch pauses now and then, unless it is urgent."""

from __future__ import annotations

import time

import pytest

from mlx_pharos.telemetry.unhurried import Unhurried


@pytest.mark.parametrize("is_urgent", [False, True])
def test_pauses_lie_between_the_items(is_urgent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All items come in their order; after each 16 there is a short pause, none where it is urgent."""
    seen: list[int | str] = []
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        seen.append("pause")

    monkeypatch.setattr(time, "sleep", pause)
    items = Unhurried(range(40), lambda: is_urgent)
    seen.extend(items)
    between = [] if is_urgent else ["pause"]
    assert [*range(16), *between, *range(16, 32), *between, *range(32, 40)] == seen
    assert all(0 < each < 0.001 for each in pauses)
    assert (40, 3, [1, 2]) == (len(items), items[3], list(items[1:3]))
