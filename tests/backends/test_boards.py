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


_MAY_BE_EMPTY = "pharos_ledger_"
"""Told by an engine that limits memory alone, and measured over a spell of work that has ended."""
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
            # Asked in any case: Prometheus has to be able to read it.
            if not any(
                math.isfinite(value) for _, value in loaded.prometheus.query(with_values(query))
            )
            and _MAY_BE_EMPTY not in query
        ]

    until(lambda: not empty(), what=f"data on the board {path.stem}")
