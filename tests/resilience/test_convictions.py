"""Prompts that are not tried again for a while."""

from __future__ import annotations

import pytest

from mlx_pharos.resilience.convictions import CONVICTION_SECONDS, Convictions
from mlx_pharos.resilience.errors import EngineDiedError


def test_a_prompt_is_refused_for_a_while_and_no_other_is() -> None:
    """By the clock of the caller; afterwards nothing is left of it."""
    convictions = Convictions()
    assert not convictions
    told = convictions.convict(b"deadly", 100.0, deaths=3)
    assert convictions
    assert ("3 times" in told.message, told.retry_after) == (True, CONVICTION_SECONDS)
    with pytest.raises(EngineDiedError, match="3 times") as refused:
        convictions.check(b"deadly", 101.0)
    assert CONVICTION_SECONDS - 1 == refused.value.retry_after
    convictions.check(b"harmless", 101.0)
    convictions.check(b"harmless", 100.0 + CONVICTION_SECONDS)
    assert not convictions
    convictions.check(b"deadly", 100.0 + CONVICTION_SECONDS)


def test_many_prompts_do_not_take_memory_without_end() -> None:
    """The oldest ones are forgotten."""
    convictions = Convictions()
    for number in range(1000):
        convictions.convict(b"%d" % number, 0.0, deaths=1)
    refused = []
    for number in range(1000):
        try:
            convictions.check(b"%d" % number, 1.0)
        except EngineDiedError:
            refused.append(number)
    assert refused == list(range(744, 1000))
