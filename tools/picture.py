"""Draw the figures that a board shows, from a running Prometheus, where no Grafana is at hand.

``python tools/picture.py BOARD.json http://127.0.0.1:9090 SECONDS OUTPUT.png`` asks Prometheus for
each panel's queries over the last seconds and draws what it answers. Needs matplotlib, which nothing
else here does: ``pip install matplotlib``.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

__all__ = ["main"]

_POINTS = 240
_COLUMNS = 24
"""Of Grafana's grid."""
_UNITS = {
    "s": ("s", 1.0),
    "bytes": ("MB", 1e6),
    "percentunit": ("%", 0.01),
    "reqps": ("requests/s", 1.0),
    "ops": ("per s", 1.0),
}
"""Grafana's names, what is written instead, and how much of it is one."""
_SMALL, _SMALLEST = 7, 6


def _window(url: str) -> str:
    """Return over how long rates are taken: four scrapes, as in Grafana, and 15 s at least."""
    with urllib.request.urlopen(f"{url}/api/v1/targets", timeout=30) as answer:  # noqa: S310
        targets = json.load(answer)["data"]["activeTargets"]
    found = [float(each["scrapeInterval"].removesuffix("s")) for each in targets]
    return f"{max(15.0, 4 * max(found)):g}s"


def _asked(url: str, query: str, seconds: float, end: float) -> list[dict[str, Any]]:
    form = {
        "query": query.replace("$instance", ".*").replace("$__range", f"{seconds:g}s"),
        "start": str(end - seconds),
        "end": str(end),
        "step": f"{seconds / _POINTS:g}",
    }
    address = f"{url}/api/v1/query_range?{urllib.parse.urlencode(form)}"
    with urllib.request.urlopen(address, timeout=30) as answer:  # noqa: S310 - the person's own
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def _legend(template: str, labels: dict[str, str]) -> str:
    return re.sub(r"{{\s*(\w+)\s*}}", lambda match: labels.get(match[1], ""), template)


def _draw(axes: Any, panel: dict[str, Any], url: str, seconds: float, end: float) -> None:  # noqa: ANN401
    """Draw a panel of lines, or a figure with its course."""
    is_number = panel["type"] == "stat"
    unit, scale = _UNITS.get(panel["fieldConfig"]["defaults"].get("unit", ""), ("", 1))
    last = None
    for target in panel["targets"]:
        for series in _asked(url, target["expr"], seconds, end):
            times = [float(each[0]) - end for each in series["values"]]
            values = [float(each[1]) / scale for each in series["values"]]
            last = values[-1]
            label = _legend(target["legendFormat"], series["metric"])
            axes.plot(times, values, linewidth=1, label=label)
    axes.set_title(panel["title"], fontsize=_SMALL + 1, loc="left")
    axes.set_xlim(-seconds, 0)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=_SMALLEST)
    axes.grid(alpha=0.3)
    if is_number:
        axes.set_xticks([])
        text = "no data" if last is None else f"{last:.3g} {unit}"
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=13)
        return
    axes.set_ylabel(unit, fontsize=_SMALLEST)
    axes.set_xlabel("seconds before the end", fontsize=_SMALLEST)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=_SMALLEST, loc="upper left", frameon=False, ncols=2)


def main(board: str, url: str, seconds: float, output: str) -> None:
    """Draw every panel of a board at its place."""
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    text = Path(board).read_text(encoding="utf-8").replace("$__rate_interval", _window(url))
    panels = [each for each in json.loads(text)["panels"] if each["type"] in {"stat", "timeseries"}]
    rows = max(each["gridPos"]["y"] + each["gridPos"]["h"] for each in panels)
    figure = pyplot.figure(figsize=(13, rows * 0.28), layout="constrained")
    grid = figure.add_gridspec(rows, _COLUMNS)
    end = time.time()
    for panel in panels:
        place = panel["gridPos"]
        area = grid[place["y"] : place["y"] + place["h"], place["x"] : place["x"] + place["w"]]
        _draw(figure.add_subplot(area), panel, url, seconds, end)
    figure.savefig(output, dpi=100)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2].rstrip("/"), float(sys.argv[3]), sys.argv[4])
