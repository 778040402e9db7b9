"""The engine process, its batch, and memory."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from .panel import empty_board, graph, number
from .query import average, gauge, increase, or_none, quantile, rate

__all__ = ["board"]


def board() -> Dashboard:
    """Return the board for engine and memory."""
    made = empty_board(
        "engine", "engine and memory", "Whether the engine lives, and how full it is."
    )
    made = (
        made.with_panel(
            number(
                "Engines ready",
                "Servers that can generate now.",
                gauge("pharos.engine.up"),
                steps=((None, "red"), (1, "green")),
                width=6,
            )
        )
        .with_panel(
            number(
                "Silence",
                "Time since the engine's last message while there is work to do.",
                gauge("pharos.engine.last_progress.age", over="max"),
                unit="s",
                steps=((None, "green"), (10, "orange"), (60, "red")),
                width=6,
            )
        )
        .with_panel(
            number(
                "Restarts",
                "Times that the engine was started again within the time that is shown.",
                or_none(increase("pharos.engine.restarts")),
                steps=((None, "green"), (0.5, "orange"), (3, "red")),
                width=6,
            )
        )
        .with_panel(
            number(
                "Resumed",
                "Requests that went on after a restart within the time that is shown.",
                or_none(increase("pharos.requests.resumed")),
                width=6,
            )
        )
    )
    return _policies(_memory(_steps(made)))


def _steps(made: Dashboard) -> Dashboard:
    return (
        made.with_row(Row("Steps"))
        .with_panel(
            graph(
                "Sequences in a step",
                "The mean, and what runs and waits now.",
                (average("pharos.engine.batch.size"), "mean batch"),
                (gauge("pharos.requests.running"), "running"),
                (gauge("pharos.requests.queued"), "waiting"),
            )
        )
        .with_panel(
            graph(
                "Time of a step",
                "One pass of the model over the batch, prefill chunks included.",
                (quantile(0.95, "pharos.engine.step.duration"), "p95"),
                (quantile(0.5, "pharos.engine.step.duration"), "p50"),
                (quantile(0.99, "pharos.engine.step.duration"), "p99"),
                unit="s",
            )
        )
        .with_panel(
            graph(
                "Restarts by reason",
                "How the engine had ended that was started again.",
                (
                    or_none(rate("pharos.engine.restarts", by="reason"), label="reason"),
                    "{{reason}}",
                ),
                unit="cps",
            )
        )
        .with_panel(
            graph(
                "Threads of the server",
                "Threads that answer requests, and requests that wait for one.",
                (gauge("pharos.http.threads", by="state"), "{{state}}"),
                (gauge("pharos.http.queue.depth"), "requests waiting"),
                (gauge("http.server.active_requests"), "requests being answered"),
            )
        )
    )


def _memory(made: Dashboard) -> Dashboard:
    return (
        made.with_row(Row("Memory"))
        .with_panel(
            graph(
                "MLX",
                "What MLX holds, keeps for later, and held at most, as it counts it.",
                (gauge("pharos.memory.usage", by="kind"), "{{kind}}"),
                unit="bytes",
            )
        )
        .with_panel(
            graph(
                "Processes",
                "Resident memory, as the system counts it.",
                (gauge("process.memory.usage", by="process"), "{{process}}"),
                unit="bytes",
            )
        )
        .with_panel(
            graph(
                "KV state",
                "Memory that is allocated for running sequences.",
                (gauge("pharos.kv.reserved"), "reserved"),
                unit="bytes",
            )
        )
        .with_panel(
            graph(
                "KV state in use",
                "Share of it that holds tokens.",
                (gauge("pharos.kv.usage", over="avg"), "used"),
                unit="percentunit",
                top=1,
            )
        )
        .with_panel(
            graph(
                "Ledger",
                "Memory that is promised to admitted requests, and that may be promised.",
                (gauge("pharos.ledger.reserved"), "promised"),
                (gauge("pharos.ledger.limit"), "limit"),
                unit="bytes",
            )
        )
        .with_panel(
            graph(
                "Needed of what was promised",
                "Measured peak memory of requests, as a share of what was promised; above 1 they "
                "needed more.",
                (quantile(0.95, "pharos.ledger.prediction.ratio"), "p95"),
                (quantile(0.5, "pharos.ledger.prediction.ratio"), "p50"),
                unit="percentunit",
            )
        )
        .with_panel(
            graph(
                "Sent back to the queue",
                "Sequences that went back to the queue because memory had run short.",
                (or_none(rate("pharos.requests.preempted")), "sequences"),
                unit="cps",
            )
        )
        .with_panel(
            graph(
                "Reclaimed",
                "Memory that was measured to be free after it had run short.",
                (
                    or_none(rate("pharos.memory.reclaimed", by="action"), label="action"),
                    "{{action}}",
                ),
                unit="Bps",
            )
        )
    )


def _policies(made: Dashboard) -> Dashboard:
    return (
        made.with_row(Row("Policies"))
        .with_panel(
            graph(
                "Breakers that are not closed",
                "1 while a part is switched off or on trial because it had failed.",
                (
                    or_none(
                        gauge("pharos.breaker.state", by="name", where='state!="closed"'),
                        label="name",
                    ),
                    "{{name}}",
                ),
                top=1,
            )
        )
        .with_panel(
            graph(
                "Changes of breakers",
                "Into which state a breaker changed.",
                (
                    or_none(rate("pharos.breaker.transitions", by="name, to"), label="to"),
                    "{{name}} {{to}}",
                ),
                unit="cps",
            )
        )
        .with_panel(
            graph(
                "Retries",
                "Attempts after the first, by what they led to.",
                (
                    or_none(rate("pharos.retries", by="outcome"), label="outcome"),
                    "{{outcome}}",
                ),
                unit="cps",
            )
        )
    )
