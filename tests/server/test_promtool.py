"""Prometheus' own tool reads what a running server says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.client import wait_until
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


def test_one_model_under_two_names_has_one_name_under_vllms(
    tiny_model: Any, serving: Callable[..., Any]
) -> None:
    """Counters and histograms agree on the model's name, whatever name the clients used; and before
    the first of them the share of memory in use is there, and 0.
    """

    def samples() -> list[Any]:
        text = running.get("/metrics").body.decode()
        families = text_string_to_metric_families(text)
        return [sample for family in families for sample in family.samples]

    def counts(name: str) -> list[float]:
        return [sample.value for sample in samples() if sample.name == name]

    with serving(tiny_model, vllm_names=True) as running:
        assert [0] == counts("vllm:kv_cache_usage_perc")
        for name in running.options.served_model_names:
            assert 200 == running.chat(model=name, max_tokens=4).status
        # A record is made after the last byte: the last one may be in the making.
        wait_until(lambda: counts("vllm:request_success_total") == [2])
        assert [2] == counts("vllm:e2e_request_latency_seconds_count")
        names = {each.labels["model_name"] for each in samples() if each.name.startswith("vllm:")}
        assert {"tiny"} == names


def test_the_legacy_text_can_be_read(server: RunningServer) -> None:
    """The older server's names break today's rules, which is their contract; they can be read."""
    findings = promtool_findings(_scrape(server, "/v1/metrics?format=prometheus"))
    assert not any("parsing error" in each for each in findings)
