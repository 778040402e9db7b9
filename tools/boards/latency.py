"""Where a request's time goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .overview import GENERATION
from .panel import empty_board, graph, heatmap
from .query import average, heat, quantile

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard

__all__ = ["board"]

_LEVELS = ((0.95, "p95"), (0.5, "p50"), (0.99, "p99"))
_PHASES = ("queue", "prefill", "decode")


def _quantiles(instrument: str) -> list[tuple[str, str]]:
    return [(quantile(level, instrument), legend) for level, legend in _LEVELS]


def board() -> Dashboard:
    """Return the board for the question why it is slow."""
    made = empty_board("latency", "latency", "From arrival to last byte, phase by phase.")
    for title, instrument, description in (
        (
            "Whole requests",
            "gen_ai.server.request.duration",
            "From arrival to the end, failed requests included.",
        ),
        (
            "Time to first token",
            "gen_ai.server.time_to_first_token",
            "From arrival to first token, successful requests only.",
        ),
        (
            "Time per token of a request",
            "gen_ai.server.time_per_output_token",
            "The mean over a request's tokens after the first, successful requests only.",
        ),
    ):
        made = made.with_panel(
            graph(
                title,
                f"{description} A point is a request: it leads to its trace.",
                *_quantiles(instrument),
                unit="s",
                exemplars=True,
            )
        )
    return (
        made.with_panel(
            graph(
                "Mean time by phase",
                "Waiting for a place in the batch, computing the prompt, generating the answer.",
                *[(average(f"pharos.request.{phase}.duration"), phase) for phase in _PHASES],
                unit="s",
            )
        )
        .with_panel(
            heatmap(
                "First tokens",
                "How times to first token are spread.",
                heat("gen_ai.server.time_to_first_token"),
            )
        )
        .with_panel(
            heatmap(
                "Between tokens",
                "How times between tokens are spread.",
                heat("pharos.inter_token.duration"),
            )
        )
        .with_panel(
            graph(
                "p95 by phase",
                "As above, of the slowest twentieth of each phase; they do not add up.",
                *[(quantile(0.95, f"pharos.request.{phase}.duration"), phase) for phase in _PHASES],
                unit="s",
            )
        )
        .with_panel(
            graph(
                "HTTP by route, p95",
                "From a request's arrival to its last byte, on the server's clock.",
                (
                    quantile(
                        0.95, "http.server.request.duration", by="http_route", where=GENERATION
                    ),
                    "{{http_route}}",
                ),
                unit="s",
            )
        )
        .with_panel(
            heatmap(
                "Prompt length",
                "Tokens of prompts.",
                heat("pharos.request.tokens", where='type="input"'),
                unit="short",
            )
        )
        .with_panel(
            heatmap(
                "Answer length",
                "Tokens of answers, all choices of a request together.",
                heat("pharos.request.tokens", where='type="output"'),
                unit="short",
            )
        )
        .with_panel(
            heatmap(
                "Longest choice",
                "Tokens of the longest choice of each request.",
                heat("pharos.request.longest_choice"),
                unit="short",
            )
        )
    )
