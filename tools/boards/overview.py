"""The golden signals: traffic, errors, latency, saturation."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from .panel import empty_board, graph, number
from .query import gauge, or_none, quantile, rate, share

__all__ = ["GENERATION", "board"]

GENERATION = 'http_request_method="POST",http_route=~"/v1/.+"'
"""Of HTTP's requests, those that generate."""
_HTTP = "http.server.request.duration"
_FIRST = "gen_ai.server.time_to_first_token"
_ANSWERED_5XX = rate(_HTTP, part="_count", where=f'{GENERATION},http_response_status_code=~"5.."')
_BROKEN_OFF = rate(
    _HTTP,
    part="_count",
    where=f'{GENERATION},http_response_status_code="200",error_type!~"|client_gone"',
)
_BAD = f"({or_none(_ANSWERED_5XX)}) + ({or_none(_BROKEN_OFF)})"
"""Answered with 5xx, or begun and then failed: as the alerts count."""
_JUDGED = rate(_HTTP, part="_count", where=GENERATION + ',http_response_status_code!~"4.."')


def board() -> Dashboard:
    """Return the board that one looks at first."""
    made = empty_board(
        "overview", "overview", "Traffic, errors, latency and saturation at a glance."
    )
    made = (
        made.with_panel(
            number(
                "Engines ready",
                "Servers that can generate now.",
                gauge("pharos.engine.up"),
                steps=((None, "red"), (1, "green")),
            )
        )
        .with_panel(
            number(
                "Requests",
                "Generation requests a second, whatever their end.",
                rate(_HTTP, part="_count", where=GENERATION),
                unit="reqps",
            )
        )
        .with_panel(
            number(
                "Failed",
                "Share of requests that were answered with 5xx, or broke off after they had begun. "
                "What the client got wrong counts on neither side.",
                share(_BAD, _JUDGED),
                unit="percentunit",
                steps=((None, "green"), (0.001, "orange"), (0.01, "red")),
            )
        )
        .with_panel(
            number(
                "Time to first token, p95",
                "From a request's arrival to its first token, successful requests only.",
                quantile(0.95, _FIRST),
                unit="s",
                steps=((None, "green"), (5, "red")),
            )
        )
        .with_panel(
            number(
                "Tokens generated",
                "Answers' tokens a second.",
                rate("pharos.tokens", where='type="output"'),
                unit="short",
            )
        )
        .with_panel(
            number(
                "Waiting",
                "Sequences that wait for a place in the batch.",
                gauge("pharos.requests.queued"),
                steps=((None, "green"), (1, "orange")),
            )
        )
    )
    return _saturation(_errors(_traffic(made)))


def _traffic(made: Dashboard) -> Dashboard:
    return (
        made.with_row(Row("Traffic"))
        .with_panel(
            graph(
                "Requests by status",
                "Generation requests a second by the status that the client saw; 499: it left.",
                (
                    rate(_HTTP, part="_count", by="http_response_status_code", where=GENERATION),
                    "{{http_response_status_code}}",
                ),
                unit="reqps",
            )
        )
        .with_panel(
            graph(
                "Tokens",
                "Tokens a second: of prompts, computed or taken from the prompt cache, and of "
                "answers.",
                (rate("pharos.tokens", by="type"), "{{type}}"),
                unit="short",
            )
        )
        .with_row(Row("Latency"))
        .with_panel(
            graph(
                "Time to first token",
                "From arrival to first token, successful requests only. A point is a request: it "
                "leads to its trace.",
                (quantile(0.95, _FIRST), "p95"),
                (quantile(0.5, _FIRST), "p50"),
                (quantile(0.99, _FIRST), "p99"),
                unit="s",
                exemplars=True,
            )
        )
        .with_panel(
            graph(
                "Time between tokens",
                "Between two tokens of a sequence, on the engine's clock.",
                (quantile(0.95, "pharos.inter_token.duration"), "p95"),
                (quantile(0.5, "pharos.inter_token.duration"), "p50"),
                (quantile(0.99, "pharos.inter_token.duration"), "p99"),
                unit="s",
            )
        )
    )


def _errors(made: Dashboard) -> Dashboard:
    return (
        made.with_row(Row("Errors"))
        .with_panel(
            graph(
                "How requests ended",
                "Generation requests a second by their end; each is counted once.",
                (rate("pharos.requests.finished", by="finish_reason"), "{{finish_reason}}"),
                unit="reqps",
            )
        )
        .with_panel(
            graph(
                "Errors and refusals",
                "By the code that the client saw, and by why it was told to come back later.",
                (
                    or_none(
                        rate("pharos.requests.finished", by="error_type", where='error_type!=""'),
                        label="error_type",
                    ),
                    "error: {{error_type}}",
                ),
                (
                    or_none(rate("pharos.admission.refusals", by="reason"), label="reason"),
                    "refused: {{reason}}",
                ),
                unit="reqps",
            )
        )
    )


def _saturation(made: Dashboard) -> Dashboard:
    return (
        made.with_row(Row("Saturation"))
        .with_panel(
            graph(
                "Running and waiting",
                "Sequences in the batch, and those that wait for a place in it.",
                (gauge("pharos.requests.running"), "running"),
                (gauge("pharos.requests.queued"), "waiting"),
            )
        )
        .with_panel(
            graph(
                "Memory",
                "Resident memory of the two processes, and what MLX holds, as it counts it.",
                (gauge("process.memory.usage", by="process"), "{{process}} process"),
                (gauge("pharos.memory.usage", by="kind", where='kind!="mlx_peak"'), "{{kind}}"),
                unit="bytes",
            )
        )
    )
