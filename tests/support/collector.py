"""A collector for OTLP over HTTP, as a real server on a real port, with the faults of real ones."""

from __future__ import annotations

import contextlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, ClassVar

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
    from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

__all__ = [
    "Collector",
    "attributes_of",
    "black_hole",
    "collector",
    "dead_port",
    "failing_collector",
]


class Collector:
    """What a running collector has received. Threads: one per connection, all joined at the end."""

    def __init__(self, port: int = 0) -> None:
        self.status = 200
        """What each export is answered with."""
        self.delay = 0.0
        """Seconds that an answer takes."""
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._received: dict[str, list[Any]] = {"traces": [], "metrics": [], "logs": []}
        self.headers: list[dict[str, str]] = []
        owner = self

        class Handler(_Handler):
            collector = owner

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    @property
    def endpoint(self) -> str:
        """The base URL for exporters."""
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Stop listening; answers that are under way come at once."""
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def linger(self) -> None:
        """Take as long as an answer is to take."""
        if self.delay:
            self._closing.wait(self.delay)

    def take(self, signal: str, message: Any, headers: dict[str, str]) -> None:
        """Keep a request that was accepted."""
        with self._lock:
            self._received[signal].append(message)
            self.headers.append(headers)

    def requests(self, signal: str) -> list[Any]:
        """Return the requests of a signal as they came."""
        with self._lock:
            return list(self._received[signal])

    def forget(self) -> None:
        """Drop what was received."""
        with self._lock:
            self.headers.clear()
            for requests in self._received.values():
                requests.clear()

    def spans(self) -> list[Span]:
        """Return all spans."""
        return [
            span
            for request in self.requests("traces")
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def logs(self) -> list[LogRecord]:
        """Return all log records."""
        return [
            record
            for request in self.requests("logs")
            for resource in request.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]

    def metrics(self) -> dict[str, Metric]:
        """Return the metrics of the last export, by name."""
        requests = self.requests("metrics")
        return {
            metric.name: metric
            for resource in (requests[-1].resource_metrics if requests else [])
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


class _Handler(BaseHTTPRequestHandler):
    collector: ClassVar[Collector]
    protocol_version = "HTTP/1.0"

    _KINDS: ClassVar[dict[str, tuple[str, Any]]] = {
        "/v1/traces": ("traces", ExportTraceServiceRequest),
        "/v1/metrics": ("metrics", ExportMetricsServiceRequest),
        "/v1/logs": ("logs", ExportLogsServiceRequest),
    }

    def do_POST(self) -> None:
        """Decode an export, or refuse it."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        signal, kind = self._KINDS[self.path]
        if self.collector.status == 200:
            self.collector.take(signal, kind.FromString(body), dict(self.headers.items()))
        self.collector.linger()
        # A client that has given up meanwhile does not read it.
        with contextlib.suppress(OSError):
            self._answer()

    def _answer(self) -> None:
        self.send_response(self.collector.status)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Stay silent."""


@contextlib.contextmanager
def collector(port: int = 0) -> Iterator[Collector]:
    """Run a collector."""
    running = Collector(port)
    try:
        yield running
    finally:
        running.close()


def dead_port() -> int:
    """Return a port of this machine where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """Listen and never answer: connections are made, and nothing comes back."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def failing_collector(fault: str) -> Iterator[str]:
    """Give the endpoint of a collector that is ``dead``, ``silent``, or answers 503: any other word."""
    if fault.startswith("dead"):
        yield f"http://127.0.0.1:{dead_port()}"
    elif fault == "silent":
        with black_hole() as endpoint:
            yield endpoint
    else:
        with collector() as target:
            target.status = 503
            yield target.endpoint


def attributes_of(owner: Any) -> dict[str, Any]:
    """Return the attributes of a decoded message as plain values."""
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value")) for each in owner.attributes
    }
