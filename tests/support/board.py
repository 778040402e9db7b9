"""The boards in ``deploy/grafana``: their queries, and what a query names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BOARDS", "labels_of", "metrics_of", "queries_of", "with_values"]

BOARDS = sorted((Path(__file__).parents[2] / "deploy/grafana/boards").glob("*.json"))
_GRAFANAS = {"$__rate_interval": "1m", "$__range": "1m", "$instance": ".*"}
_SERIES_SUFFIX = re.compile(r"_(bucket|count|sum)$")
_WORDS = {"or", "on"}


def _panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in board["panels"]:
        yield panel
        yield from panel.get("panels", ())


def queries_of(path: Path) -> list[tuple[str, str]]:
    """Return the queries of a board, each with its panel's title, with Grafana's variables in them."""
    board = json.loads(path.read_text(encoding="utf-8"))
    return [
        (panel["title"], target["expr"])
        for panel in _panels(board)
        for target in panel.get("targets", ())
    ]


def with_values(query: str) -> str:
    """Return a query as Grafana sends it, for all servers and one minute."""
    for name, value in _GRAFANAS.items():
        query = query.replace(name, value)
    assert "$" not in query
    return query


def metrics_of(query: str) -> set[str]:
    """Return the names of the metrics, without a histogram's ``_bucket``, ``_count`` and ``_sum``."""
    rest = re.sub(r'"[^"]*"', "", query)
    rest = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(by|on) ?\([^)]*\)", " ", rest)
    found = re.findall(r"[a-zA-Z_:][\w:]*\b(?!\s*\()", rest)
    return {_SERIES_SUFFIX.sub("", name) for name in found if name not in _WORDS}


def labels_of(query: str) -> set[str]:
    """Return the labels that are matched or grouped by."""
    matched = re.findall(r"(\w+)(?:=~|!~|!=|=)", "".join(re.findall(r"\{[^}]*\}", query)))
    grouped = [
        label.strip()
        for group in re.findall(r"\bby ?\(([^)]*)\)", query)
        for label in group.split(",")
    ]
    return {*matched, *grouped}
