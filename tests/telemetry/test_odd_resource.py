"""A resource whose attributes have names and values that neither Prometheus nor UTF-8 knows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from mlx_pharos.telemetry.telemetry import Telemetry, TelemetryOptions
from support.promtool import promtool_findings

if TYPE_CHECKING:
    from collections.abc import Iterator

OPEN = "application/openmetrics-text; version=1.0.0"
ATTRIBUTES = (
    "k8s.pod-name=x,a_b=2,a.b=1,A.b=3,a--..b=0,9.lives=cat,__name__=n,...=dots,%=percent,größe=7,"
    "bad=a\udcffb,b\udcffd=v,quoted=%22%5C%0A"
)
"""Nothing keeps an operator from such names, or a variable from bytes that are no UTF-8."""
LABELS = {
    "k8s_pod_name": "x",
    "a_b": "0;1;2",
    "A_b": "3",
    "key_9_lives": "cat",
    "_name_": "n",
    "_": "percent;dots",
    "gr_e": "7",
    "bad": "a?b",
    "b_d": "v",
    "quoted": '"\\\n',
    "service_name": "pharos",
}
MODEL = "m\udcff"
"""As it comes from an argument."""


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> Iterator[Telemetry]:
    """Telemetry of a process with such a resource."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", ATTRIBUTES)
    with Telemetry(TelemetryOptions(model=MODEL, vllm_names=True)) as made:
        made.instruments.tokens.add(1, {"model": MODEL, "type": "output"})
        yield made


@pytest.mark.parametrize("accept", ["", OPEN], ids=["plain", "openmetrics"])
def test_a_scrape_has_them_by_opentelemetrys_rules(odd: Telemetry, accept: str) -> None:
    """What a label's name may not have is one underscore, and values of names that become the same
    are joined in the order of the names.
    """
    text, _ = odd.prometheus.scrape(accept)
    assert text.encode()
    (target,) = re.findall(r"^target_info\{.*", text, re.MULTILINE)
    names = re.findall(r'[{,]([^={,"]+)="', target)
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name) for name in names)
    parse = parse_openmetrics if accept else parse_plain
    samples = [sample for family in parse(text) for sample in family.samples]
    (labels,) = (each.labels for each in samples if each.name == "target_info")
    assert LABELS.items() <= labels.items()
    assert "m?" in {each.labels.get("model") for each in samples}


def test_promtool_reads_it(odd: Telemetry) -> None:
    """Prometheus' own tool can read it, and finds nothing but the colons of vLLM's names."""
    findings = promtool_findings(odd.prometheus.scrape()[0])
    assert [] == [each for each in findings if "vllm:" not in each]


def test_it_can_be_sent(odd: Telemetry) -> None:
    """Bytes that are no UTF-8 are replaced before anybody encodes them."""
    for name, value in odd.resource.attributes.items():
        assert name.encode()
        assert str(value).encode()
    assert "a?b" == odd.resource.attributes["bad"]
