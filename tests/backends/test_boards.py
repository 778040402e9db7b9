"""The boards' queries, asked of the real Prometheus after a load run."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import pytest

from support.board import BOARDS, queries_of, with_values
from support.polling import until
from support.stack import ask

if TYPE_CHECKING:
    from pathlib import Path

    from support.stack import Stack


_NOT_YET = "pharos_ledger_prediction_ratio"
"""Measured over a spell of work that has ended; until then it has no quantile."""
pytestmark = pytest.mark.timeout(150)


@pytest.fixture(scope="module")
def loaded(running: Stack) -> Stack:
    """The stack after two rounds of chats, between which Prometheus has scraped everything."""
    prometheus = running.prometheus
    for _ in range(2):
        before = time.time()
        for _ in range(3):
            ask(running.served, "The same beginning, so that the prompt cache has something to say")
        until(
            lambda: (prometheus.value("min(timestamp(up))") or 0) > before,  # noqa: B023
            what="a scrape of every target after the chats",
        )
    return running


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_every_query_of_a_board_has_data(path: Path, loaded: Stack) -> None:
    """Prometheus can read the query, and there is at least one series with a number."""

    def empty() -> list[tuple[str, str]]:
        return [
            (title, query)
            for title, query in queries_of(path)
            if not any(
                math.isfinite(value) or _NOT_YET in query
                for _, value in loaded.prometheus.query(with_values(query))
            )
        ]

    until(lambda: not empty(), what=f"data on the board {path.stem}")
