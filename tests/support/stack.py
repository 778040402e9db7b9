"""A server with its whole stack: collector, Jaeger, VictoriaLogs, Prometheus, Alertmanager."""

from __future__ import annotations

import contextlib
import json
import secrets
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .backend import Alertmanager, Collector, Jaeger, Prometheus, VictoriaLogs
from .polling import until
from .served import Served, serve_model
from .webhook import Webhook, webhook

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = [
    "CLIENT_SPAN",
    "SPANS",
    "Chat",
    "Stack",
    "ask",
    "long_stream",
    "sending",
    "serve_tiny",
    "stack",
]

CLIENT_SPAN = "b7ad6b7169203331"
"""The id of the span that a client's request says it belongs to."""
SPANS = ["POST /v1/chat/completions", "chat tiny", "decode", "prefill", "queue"]
"""The names of a chat's spans, sorted."""
_FLAGS = ("--served-model-name", "tiny", "--max-tokens", "8")


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat and what came of it."""

    trace: str
    request_id: str
    status: int
    answer: dict[str, Any]

    @property
    def usage(self) -> dict[str, Any]:
        """What the client was told of its tokens."""
        found: dict[str, Any] = self.answer["usage"]
        return found


@dataclass(frozen=True, slots=True)
class Stack:
    """The parts, all running."""

    served: Served
    key: str
    """Of the server's metrics."""
    collector: Collector
    jaeger: Jaeger
    victorialogs: VictoriaLogs
    prometheus: Prometheus
    webhook: Webhook

    def shown(self, metric: str, **labels: str) -> float:
        """Return the sum of a metric's series at the server's own ``/metrics``; 0 without any."""
        request = urllib.request.Request(
            f"http://{self.served.address}/metrics",
            headers={"Authorization": f"Bearer {self.key}"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        wanted = [f'{name}="{text}"' for name, text in labels.items()]
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith(f"{metric}{{") and all(label in line for label in wanted)
        )


@contextlib.contextmanager
def long_stream(served: Served, tokens: int) -> Iterator[Iterator[str]]:
    """Ask for a stream of exactly so many tokens, and give the data of its events as they come."""
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": tokens,
        "stream": True,
        # The tokens that would end it earlier.
        "logit_bias": {str(token): -100 for token in range(256, 260)},
    }
    request = urllib.request.Request(
        f"http://{served.address}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=40) as answer:
        yield (line[6:].decode().strip() for line in answer if line.startswith(b"data: "))


def ask(served: Served, content: str = "Hello", **headers: str) -> Chat:
    """Chat in a trace of its own, and return the whole answer or error."""
    trace = secrets.token_hex(16)
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
    request = urllib.request.Request(
        f"http://{served.address}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={
            "Content-Type": "application/json",
            "traceparent": f"00-{trace}-{CLIENT_SPAN}-01",
            **headers,
        },
    )
    try:
        answer = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return Chat(trace, answer.headers["X-Request-Id"], answer.status, json.load(answer))


def sending(collector: Collector, **variables: str) -> dict[str, str]:
    """Return a server's variables: it sends what it has twice a second."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.otlp,
        "OTEL_BSP_SCHEDULE_DELAY": "500",
        "OTEL_BLRP_SCHEDULE_DELAY": "500",
        "OTEL_METRIC_EXPORT_INTERVAL": "500",
        **variables,
    }


@contextlib.contextmanager
def serve_tiny(model: Path, variables: dict[str, str]) -> Iterator[Served]:
    """Serve the tiny model as ``tiny``, with short answers."""
    with serve_model(model, *_FLAGS, variables=variables) as served:
        yield served


@contextlib.contextmanager
def stack(folder: Path, model: Path) -> Iterator[Stack]:
    """Run all parts with the files of ``deploy/``, until the block ends.

    Prometheus scrapes the server with its key; traces and logs go by the collector.
    """
    jaeger = Jaeger.prepare(folder / "jaeger")
    victorialogs = VictoriaLogs.prepare(folder / "victorialogs")
    collector = Collector.prepare(
        folder / "collector", jaeger=jaeger.otlp, victorialogs=victorialogs.url
    )
    key = secrets.token_hex(16)
    variables = sending(collector, OTEL_LOGS_EXPORTER="otlp", METRICS_API_KEY=key)
    with contextlib.ExitStack() as running:
        running.enter_context(jaeger.program)
        running.enter_context(victorialogs.program)
        running.enter_context(collector.program)
        served = running.enter_context(serve_tiny(model, variables))
        told = running.enter_context(webhook())
        alertmanager = Alertmanager.prepare(folder / "alertmanager", webhook=told.url)
        running.enter_context(alertmanager.program)
        prometheus = Prometheus.prepare(
            folder / "prometheus",
            key=key,
            pharos=[served.address],
            pipeline={
                "otel-collector": collector.metrics,
                "span-metrics": collector.span_metrics,
                "jaeger": jaeger.metrics,
                "victorialogs": victorialogs.address,
                "alertmanager": alertmanager.address,
            },
            alertmanager=alertmanager.address,
        )
        running.enter_context(prometheus.program)
        until(lambda: prometheus.value('up{job="pharos"}') == 1, what="the server is scraped")
        yield Stack(served, key, collector, jaeger, victorialogs, prometheus, told)
