"""All books that are kept of the same traffic: the clients' own, and those of every backend."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from support.collector import attributes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.client import RunningServer
    from support.traffic import Seen, Traffic

__all__ = [
    "MINE",
    "SERVER",
    "Books",
    "epoch_offset_ns",
    "error_of",
    "seconds",
    "seconds_until",
    "without_mine",
]

MINE = {"/metrics", "/v1/metrics"}
"""Routes that the test itself asks for, to look."""
SERVER = 2
"""The kind of a request's own span."""


@dataclass
class Books:
    """The clients' side and all others, once the traffic is over."""

    traffic: Traffic
    lines: list[dict[str, Any]]
    spans: list[Any]
    otlp: dict[str, Any]
    prometheus: dict[str, list[Any]]
    legacy: dict[str, Any]

    epoch_offset_ns: int
    """What the server adds to the monotonic clock for the times of spans."""

    def line_of(self, seen: Seen) -> dict[str, Any]:
        """The only access line of a request."""
        (found,) = self._lines[seen.request_id]
        return found

    def span_of(self, line: dict[str, Any]) -> Any:
        """The only span that an access line can mean."""
        (found,) = [each for each in self._spans[line["trace_id"]] if each.kind == SERVER]
        assert found.span_id.hex() == line["span_id"]
        return found

    def within(self, server: Any) -> dict[str, Any]:
        """The spans of a request's trace but that of the request, by their names."""
        inner = [each for each in self._spans[server.trace_id.hex()] if each is not server]
        found = {each.name.partition(" ")[0]: each for each in inner}
        assert len(found) == len(inner)
        return found

    def generations(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Yield the span of each generation, and those within it by their names."""
        for span in self.spans:
            if span.name.startswith(("chat ", "text_comp")):
                inner = self._spans[span.trace_id.hex()]
                yield (
                    span,
                    {each.name: each for each in inner if each.parent_span_id == span.span_id},
                )

    def phase_seconds(self, name: str) -> list[float]:
        """Return the seconds of a phase, where it came to its end: the span of another says why."""
        phases = [inner[name] for _, inner in self.generations() if name in inner]
        return [seconds(each) for each in phases if "error.type" not in attributes_of(each)]

    def interval_of(self, seen: Seen) -> tuple[float, float]:
        """When the server began a request, and when it ended it, by the clock of its client."""
        server = self.span_of(self.line_of(seen))
        return self._at(server.start_time_unix_nano), self._at(server.end_time_unix_nano)

    def ordered(self, seen: Seen) -> dict[str, tuple[float, float]]:
        """Return pairs of times of a request of which the first must come first, by what they say.

        Each pair is of one clock, the machine's monotonic one, which client,
        server and engine read; so whatever the machine is busy with, the order
        holds.
        """
        begin, end = self.interval_of(seen)
        inner = self.within(self.span_of(self.line_of(seen)))
        generation = inner.get("chat") or inner.get("text_completion")
        found = {
            "begun after it was sent": (seen.sent_at, begin),
            "answered after it was begun": (begin, seen.answered_at),
        }
        if seen.first_at:
            first = seconds_until(generation, "first_token")
            assert first is not None, seen
            found["text came after it was made"] = (begin + first, seen.first_at)
        if seen.finish_reason in {"stop", "length"} and "decode" in inner:
            made = self._at(inner["decode"].end_time_unix_nano)
            found["ended after all of it was made"] = (made, seen.ended_at)
        if seen.left:
            found["seen to have left after that"] = (seen.ended_at, end)
        return found

    def _at(self, ns: int) -> float:
        return (ns - self.epoch_offset_ns) / 1e9

    @cached_property
    def _lines(self) -> dict[str, list[dict[str, Any]]]:
        found = defaultdict(list)
        for line in self.lines:
            found[line["request_id"]].append(line)
        return found

    @cached_property
    def _spans(self) -> dict[str, list[Any]]:
        found = defaultdict(list)
        for span in self.spans:
            found[span.trace_id.hex()].append(span)
        return found

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


def epoch_offset_ns(server: RunningServer) -> int:
    """Return what a server adds to the monotonic clock for the times of its spans, in ns."""
    # Reading both clocks here would bring another offset, if the system paused in between.
    application: Any = server.listener._servers[0].application
    offset: int = application.wsgi_app._spans._offset_ns
    return offset


def seconds(span: Any) -> float:
    """How long a span is."""
    return float(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9


def seconds_until(span: Any, event: str) -> float | None:
    """How long after the beginning of a span an event was; None where there was none."""
    times = [each.time_unix_nano for each in span.events if each.name == event]
    return (times[0] - span.start_time_unix_nano) / 1e9 if times else None


def error_of(line: dict[str, Any]) -> str:
    """What an access line says went wrong, in metrics' words."""
    code: str = line.get("error_code", "")
    return "client_gone" if line.get("client_left") and not code else code


def without_mine(counted: Any) -> Counter[Any]:
    """Return what was counted by routes, less what the test itself asked for."""
    return Counter({key: count for key, count in counted.items() if key[1] not in MINE})
