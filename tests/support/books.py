"""All books that are kept of the same traffic: the clients' own, and those of every backend."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from support.collector import attributes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.traffic import Seen, Traffic

__all__ = ["MINE", "Books", "seconds", "seconds_until"]

MINE = {"/metrics", "/v1/metrics"}
"""Routes that the test itself asks for, to look."""


@dataclass
class Books:
    """The clients' side and all others, once the traffic is over."""

    traffic: Traffic
    lines: list[dict[str, Any]]
    spans: list[Any]
    otlp: dict[str, Any]
    prometheus: dict[str, list[Any]]
    legacy: dict[str, Any]

    def line_of(self, seen: Seen) -> dict[str, Any]:
        """The access line of a request."""
        (found,) = [line for line in self.lines if line["request_id"] == seen.request_id]
        return found

    def span_of(self, line: dict[str, Any]) -> Any:
        """The span that an access line names."""
        (found,) = [span for span in self.spans if span.span_id.hex() == line["span_id"]]
        return found

    def generations(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Yield the span of each generation, and those within it by their names."""
        for span in self.spans:
            if span.name.startswith(("chat ", "text_comp")):
                inner = [each for each in self.spans if each.parent_span_id == span.span_id]
                yield span, {each.name: each for each in inner}

    def series(self, family: str, *labels: str, name: str = "") -> Counter[tuple[str, ...]]:
        """Sum a family of the scrape by some of its labels."""
        found: Counter[tuple[str, ...]] = Counter()
        for sample in self.prometheus[family]:
            if sample.name == (name or family) and sample.value:
                found[tuple(sample.labels.get(label, "") for label in labels)] += int(sample.value)
        return found

    def pushed(self, name: str, *keys: str) -> Counter[tuple[Any, ...]]:
        """Sum a metric that the collector received by some of its attributes."""
        found: Counter[tuple[Any, ...]] = Counter()
        for point in self._points(name):
            given = attributes_of(point)
            value = point.as_int if hasattr(point, "as_int") else point.count
            found[tuple(given.get(key, "") for key in keys)] += int(value)
        return found

    def scraped_seconds(self, family: str) -> float:
        """What all observations of a histogram sum up to in the scrape."""
        return sum(
            float(sample.value)
            for sample in self.prometheus[family]
            if sample.name == f"{family}_sum" and sample.labels.get("http_route") not in MINE
        )

    def pushed_seconds(self, name: str) -> float:
        """What all observations of a histogram sum up to in the collector."""
        return sum(
            float(point.sum)
            for point in self._points(name)
            if attributes_of(point).get("http.route") not in MINE
        )

    def _points(self, name: str) -> Any:
        metric = self.otlp[name]
        return getattr(metric, metric.WhichOneof("data")).data_points


def seconds(span: Any) -> float:
    """How long a span is."""
    return float(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9


def seconds_until(span: Any, event: str) -> float | None:
    """How long after the beginning of a span an event was; None where there was none."""
    times = [each.time_unix_nano for each in span.events if each.name == event]
    return (times[0] - span.start_time_unix_nano) / 1e9 if times else None
