"""The rules and alerts of deploy/prometheus agree with the catalog, their tests and their pages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlx_pharos.telemetry.catalog import BY_NAME, Instrument

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RUNBOOKS = ROOT / "docs" / "runbooks"
WORDS = {
    "absent", "and", "by", "increase", "job", "max", "or", "rate", "sum",
    "exporter", "instance", "name", "reason", "signal",
}  # fmt: skip
"""What stands in an expression and is no metric: functions, and labels to group by."""
FOREIGN = {"up", "otelcol_exporter_queue_size", "otelcol_exporter_queue_capacity"}
"""Metrics that others make; tests/backends sees them in a live scrape."""


def _files(folder: str) -> list[dict[str, Any]]:
    return [
        yaml.safe_load(file.read_text(encoding="utf-8"))
        for file in sorted((PROMETHEUS / folder).glob("*.yml"))
    ]


RULES = [rule for file in _files("rules") for group in file["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
SERIES: dict[str, Instrument] = {
    f"{each.prometheus_name}{suffix}": each
    for each in BY_NAME.values()
    for suffix in (("_bucket", "_count", "_sum") if each.is_histogram else ("",))
}


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_an_alert_says_what_to_do(name: str) -> None:
    """An alert has a severity, a summary, a description, and a page that names it."""
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert {"summary", "description", "runbook"} == rule["annotations"].keys()
    page = ROOT / rule["annotations"]["runbook"]
    assert page.parent == RUNBOOKS
    text = page.read_text(encoding="utf-8")
    assert f"`{name}`" in text
    assert "## Look" in text
    assert "## Do" in text


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_an_alert_is_tried_both_ways(name: str) -> None:
    """A test of promtool sees the alert fire, and another sees it silent."""
    expected = [
        bool(case["exp_alerts"])
        for file in _files("tests")
        for test in file["tests"]
        for case in test["alert_rule_test"]
        if case["alertname"] == name
    ]
    assert {True, False} == set(expected)


def test_every_runbook_is_of_an_alert() -> None:
    """No page of docs/runbooks but its index is left without an alert."""
    named = {ROOT / rule["annotations"]["runbook"] for rule in ALERTS.values()}
    assert named == set(RUNBOOKS.glob("*.md")) - {RUNBOOKS / "README.md"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_reads_what_exists(rule: dict[str, Any]) -> None:
    """Every metric that a rule reads is in the catalog, recorded by a rule, or another program's."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[\w+\]', " ", rule["expr"])
    names = set(re.findall(r"[a-zA-Z_:][\w:]*", bare)) - WORDS
    assert names
    assert names <= SERIES.keys() | RECORDED | FOREIGN


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_selects_what_can_be(rule: dict[str, Any]) -> None:
    """Labels, their values and the bounds of buckets in a rule are those of the catalog."""
    selectors = re.findall(r"([\w:]+)\{([^}]*)\}", rule["expr"])
    for metric, selector in selectors:
        if metric in FOREIGN:
            continue
        instrument = SERIES[metric]
        known = {each.name.replace(".", "_"): each for each in instrument.attributes}
        for label, operator, value in re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', selector):
            if label == "le":
                assert float(value.split("(")[0]) in instrument.buckets
            else:
                closed = known[label].values
                if operator in {"=", "!="} and closed:
                    assert value in closed
