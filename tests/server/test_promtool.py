"""Prometheus' own tool reads what a running server says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.promtool import VLLM_COLONS, promtool_findings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.client import RunningServer


@pytest.fixture(scope="module")
def compatible(serving: Callable[..., Any], tiny_model: Any) -> Iterator[RunningServer]:
    """A server with vLLM's names, after some traffic."""
    with serving(tiny_model, vllm_names=True) as running:
        yield running


def _scrape(server: RunningServer, path: str) -> str:
    assert 200 == server.chat(max_tokens=4).status
    assert 404 == server.get("/nowhere").status
    assert 400 == server.chat(temperature=99).status
    answer = server.get(path)
    assert 200 == answer.status
    return answer.body.decode()


def test_a_live_scrape_is_clean(server: RunningServer) -> None:
    """`promtool check metrics` has nothing to say of a server that has answered and refused."""
    assert [] == promtool_findings(_scrape(server, "/metrics"))


def test_vllms_names_are_clean_but_for_their_colons(compatible: RunningServer) -> None:
    """The names that vLLM chose have colons, and nothing else is found."""
    findings = promtool_findings(_scrape(compatible, "/metrics"))
    assert findings
    assert [] == [each for each in findings if not VLLM_COLONS.fullmatch(each)]


def test_the_legacy_text_can_be_read(server: RunningServer) -> None:
    """The older server's names break today's rules, which is their contract; they can be read."""
    findings = promtool_findings(_scrape(server, "/v1/metrics?format=prometheus"))
    assert not any("parsing error" in each for each in findings)
