"""Many who scrape ``/metrics`` of a running server at once, while it answers requests."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from mlx_pharos.telemetry.exposition import OPENMETRICS, PLAIN
from support.client import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlx_pharos.telemetry.exposition import Format
    from support.client import RunningServer

_SCRAPERS = 20
_TIMES = 3
_REQUESTS = 12


@pytest.fixture(scope="module")
def lone(tiny_model: Any, serving: Callable[..., Any]) -> Iterator[RunningServer]:
    """A server that nobody else asks, and that has answered before."""
    with serving(tiny_model) as running:
        assert 200 == running.chat(max_tokens=8).status
        running.wait_idle()
        yield running


@pytest.mark.parametrize("form", [PLAIN, OPENMETRICS], ids=["plain", "openmetrics"])
def test_twenty_scrapes_at_once_are_whole_and_never_fall(lone: RunningServer, form: Format) -> None:
    """Each over a connection of its own: it is whole, has every family, and no total is less than it
    was. The requests that run meanwhile are all answered, and counted afterwards.
    """
    wait_until(lambda: _finished(_parsed(_scrape(lone, form), form)) > 0)
    before = _parsed(_scrape(lone, form), form)
    together = threading.Barrier(_SCRAPERS + 1)

    def scrape(_: int) -> list[str]:
        together.wait(30)
        return [_scrape(lone, form) for _ in range(_TIMES)]

    def ask() -> list[int]:
        together.wait(30)
        return [lone.chat(max_tokens=8).status for _ in range(_REQUESTS)]

    with ThreadPoolExecutor(_SCRAPERS + 1) as pool:
        asked = pool.submit(ask)
        scraped = list(pool.map(scrape, range(_SCRAPERS)))
        assert [200] * _REQUESTS == asked.result()
    expected = _finished(before) + _REQUESTS
    wait_until(lambda: _finished(_parsed(_scrape(lone, form), form)) == expected)
    after = _parsed(_scrape(lone, form), form)
    for texts in scraped:
        seen = [before, *(_parsed(text, form) for text in texts), after]
        for earlier, later in itertools.pairwise(seen):
            assert set(earlier) <= set(later)
            totals = _totals(later)
            assert {} == {
                key: (value, totals.get(key))
                for key, value in _totals(earlier).items()
                if totals.get(key, -1.0) < value
            }


def _scrape(server: RunningServer, form: Format) -> str:
    """Return the text of one answer, which came whole."""
    answer = server.request("GET", "/metrics", headers={"Accept": form.content_type})
    assert (200, form.content_type) == (answer.status, answer.headers["Content-Type"])
    return answer.body.decode()


def _parsed(text: str, form: Format) -> dict[str, Any]:
    """Read an exposition's families as Prometheus does; raises where it is none, or not all of one."""
    assert form.openmetrics == text.endswith("\n# EOF\n")
    families = list((parse_openmetrics if form.openmetrics else parse_plain)(text))
    found = {family.name: family for family in families}
    assert len(found) == len(families)
    return found


def _totals(families: dict[str, Any]) -> dict[str, float]:
    """Return what only grows: counters, and the counts, sums and buckets of histograms."""
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in families.values()
        if family.type in {"counter", "histogram"}
        for sample in family.samples
    }


def _finished(families: dict[str, Any]) -> float:
    family = families.get("pharos_requests_finished")
    return sum(sample.value for sample in family.samples) if family else 0.0
