"""Whether the figures can be trusted: what was scraped, sent, and lost on the way.

Beside Pharos' own metrics it asks for those of Prometheus' scrapes and of the collector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .panel import empty_board, graph, number
from .query import increase, or_none, rate

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard

__all__ = ["board"]

_WINDOW = "$__rate_interval"
_QUEUE = "max by (exporter) (otelcol_exporter_queue_size / (otelcol_exporter_queue_capacity > 0))"
_SIGNALS = ("spans", "log_records", "metric_points")


def _collector(name: str, by: str) -> str:
    return f"sum by ({by}) (rate({name}[{_WINDOW}]))"


def _of_all_signals(prefix: str, by: str) -> list[tuple[str, str]]:
    """Return a query per signal; one that is not sent is a line of zeros."""
    return [
        (
            or_none(_collector(f"otelcol_{prefix}_{signal}_total", by), label=by),
            f"{signal}: {{{{{by}}}}}",
        )
        for signal in _SIGNALS
    ]


def board() -> Dashboard:
    """Return the board of telemetry itself."""
    made = empty_board(
        "telemetry-health", "telemetry health", "What is scraped, sent, and lost on the way."
    )
    return (
        made.with_panel(
            number(
                "Servers scraped",
                "Servers that answered the last scrape.",
                'sum(up{job="pharos"})',
                steps=((None, "red"), (1, "green")),
                width=8,
            )
        )
        .with_panel(
            number(
                "Pipeline scraped",
                "Programs behind the servers that answered the last scrape.",
                'sum(up{job!="pharos"})',
                width=8,
            )
        )
        .with_panel(
            number(
                "Lost by servers",
                "Spans, data points and log records that did not reach the collector, within the "
                "time that is shown.",
                or_none(increase("pharos.telemetry.dropped")),
                steps=((None, "green"), (1, "red")),
                width=8,
            )
        )
        .with_panel(
            graph(
                "Lost by servers, by signal",
                "What did not reach the collector, and why.",
                (rate("pharos.telemetry.dropped", by="signal, reason"), "{{signal}}: {{reason}}"),
                unit="ops",
            )
        )
        .with_panel(
            graph(
                "Time of a scrape",
                "How long a target takes to answer Prometheus.",
                ("max by (job) (scrape_duration_seconds)", "{{job}}"),
                unit="s",
            )
        )
        .with_panel(
            graph(
                "Series of a scrape",
                "Samples in an answer: steady, whatever clients send.",
                ("sum by (job) (scrape_samples_scraped)", "{{job}}"),
            )
        )
        .with_panel(
            graph(
                "Collector: accepted",
                "What reached it, by receiver.",
                *_of_all_signals("receiver_accepted", "receiver"),
                unit="ops",
            )
        )
        .with_panel(
            graph(
                "Collector: sent",
                "What reached the backends, by exporter.",
                *_of_all_signals("exporter_sent", "exporter"),
                unit="ops",
            )
        )
        .with_panel(
            graph(
                "Collector: failed attempts",
                "Attempts that a backend did not take; they are made again.",
                *_of_all_signals("exporter_send_failed", "exporter"),
                unit="ops",
            )
        )
        .with_panel(
            graph(
                "Collector: queue",
                "Share of a queue that is full; full, telemetry is lost.",
                (_QUEUE, "{{exporter}}"),
                unit="percentunit",
                top=1,
            )
        )
    )
