"""What dies, and what is seen of it: the collector with its queue on disk, and the engine."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from typing import TYPE_CHECKING

import psutil
import pytest

from support.backend import Collector
from support.collector import dead_port
from support.polling import until
from support.stack import SPANS, ask, long_stream, sending, serve_tiny

if TYPE_CHECKING:
    from pathlib import Path

    from support.stack import Stack

pytestmark = pytest.mark.timeout(150)


def test_a_killed_collector_sends_what_it_had_taken(
    tiny_model: Path, running: Stack, tmp_path: Path
) -> None:
    """What it took while Jaeger and VictoriaLogs were away is in both after the collector's SIGKILL."""
    folder = tmp_path / "collector"
    nobody = f"127.0.0.1:{dead_port()}"
    first = Collector.prepare(folder, jaeger=nobody, victorialogs=f"http://{nobody}")
    variables = sending(first, OTEL_LOGS_EXPORTER="otlp", OTEL_METRICS_EXPORTER="none")
    with first.program:
        with serve_tiny(tiny_model, variables) as served:
            chats = [ask(served) for _ in range(20)]
        # Its end has flushed all that it had, and the collector has taken it.
        first.program.kill()
    second = Collector.prepare(
        folder, jaeger=running.jaeger.otlp, victorialogs=running.victorialogs.url
    )
    with second.program:
        for chat in chats:
            until(
                partial(running.jaeger.spans, chat.trace),
                lambda spans: len(spans) >= len(SPANS),
                what=f"trace {chat.trace} after the collector's death",
            )
            until(
                partial(running.victorialogs.lines, f"trace_id:={chat.trace}"),
                what=f"the log of {chat.trace} after the collector's death",
            )
    logs = first.logs.read_text(encoding="utf-8")
    assert [] == [chat.trace for chat in chats if chat.trace not in logs]


def test_every_span_is_accounted_for_across_a_collectors_death(running: Stack) -> None:
    """Where the collector is killed and comes back, each span is in Jaeger or counted as dropped."""
    lost = partial(running.shown, "pharos_telemetry_dropped_total")
    before = lost()
    chats = [ask(running.served) for _ in range(10)]
    running.collector.program.kill()
    chats += [ask(running.served) for _ in range(3)]
    running.collector.program.__enter__()
    after = ask(running.served)
    until(
        partial(running.jaeger.spans, after.trace),
        lambda spans: len(spans) >= len(SPANS),
        what="a trace from after the restart",
    )

    def unaccounted() -> float:
        found = sum(_count(running, chat.trace) for chat in chats)
        return len(SPANS) * len(chats) - found - (lost() - before)

    until(unaccounted, lambda count: count <= 0, what="every span is there or counted")


def _count(running: Stack, trace: str) -> int:
    try:
        return len(running.jaeger.spans(trace))
    except OSError:
        return 0


def test_a_killed_engine_is_a_restart_a_resume_and_an_alert(running: Stack) -> None:
    """SIGKILL of the engine under a stream shows in Prometheus, and the operator's webhook is told.

    The stream goes on to its end.
    """
    value = running.prometheus.value
    restarts = 'sum(pharos_engine_restarts_total{job="pharos",reason="SIGKILL"})'
    resumed = 'sum(pharos_requests_resumed_total{job="pharos",reason="SIGKILL"})'
    assert until(lambda: value(restarts), lambda now: now >= 0, what="zeros of restarts") == 0
    (engine,) = psutil.Process(running.served.pid).children()
    with long_stream(running.served, 4000) as events:
        for _ in range(3):
            assert next(events) != "[DONE]"
        os.kill(engine.pid, signal.SIGKILL)
        *_, last, done = events
    assert ("length", "[DONE]") == (json.loads(last)["choices"][0]["finish_reason"], done)
    until(lambda: value(restarts), lambda now: now == 1, what="the restart")
    until(lambda: value(resumed), lambda now: now == 1, what="the resume")
    until(
        lambda: running.prometheus.query(
            'ALERTS{alertname="PharosEngineRestarting",alertstate="firing",reason="SIGKILL"}'
        ),
        what="the alert fires",
    )
    (told, *_) = until(
        lambda: running.webhook.alerts("PharosEngineRestarting"), what="the webhook is told"
    )
    assert told["labels"]["severity"] == "warning"
    assert told["annotations"]["runbook"] == "docs/runbooks/engine-restarting.md"
    until(lambda: value('pharos_engine_up{job="pharos"}'), lambda up: up == 1, what="ready again")
    assert ask(running.served).status == 200
