"""A collector for OTLP over gRPC, as a real server on a real port."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc as logs_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as traces_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["GrpcCollector", "grpc_collector"]


class GrpcCollector:
    """What a running collector has received, by signal, in the order of arrival."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.metadata: list[dict[str, str]] = []
        self._lock = threading.Lock()
        self._received: dict[str, list[Any]] = {"traces": [], "metrics": [], "logs": []}

    def requests(self, signal: str) -> list[Any]:
        """Return the requests of a signal."""
        with self._lock:
            return list(self._received[signal])

    def spans(self) -> list[Any]:
        """Return all spans."""
        return [
            span
            for request in self.requests("traces")
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def metrics(self) -> dict[str, Any]:
        """Return the metrics of the last export, by name."""
        return {
            metric.name: metric
            for resource in self.requests("metrics")[-1].resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def take(self, signal: str, request: Any, context: Any, answer: Any) -> Any:
        """Keep a request, and what was sent with it."""
        with self._lock:
            self._received[signal].append(request)
            self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})
        return answer


@contextlib.contextmanager
def grpc_collector() -> Iterator[GrpcCollector]:
    """Run a collector."""
    owner = GrpcCollector()

    class Traces(traces_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
            return owner.take("traces", request, context, traces.ExportTraceServiceResponse())

    class Metrics(metrics_grpc.MetricsServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
            return owner.take("metrics", request, context, metrics.ExportMetricsServiceResponse())

    class Logs(logs_grpc.LogsServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
            return owner.take("logs", request, context, logs.ExportLogsServiceResponse())

    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        traces_grpc.add_TraceServiceServicer_to_server(Traces(), server)  # type: ignore[no-untyped-call]
        metrics_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)  # type: ignore[no-untyped-call]
        logs_grpc.add_LogsServiceServicer_to_server(Logs(), server)  # type: ignore[no-untyped-call]
        owner.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield owner
        finally:
            server.stop(None).wait()
