"""Where telemetry is sent, read from one setting and OpenTelemetry's own variables.

The exporters read the rest of their variables themselves (headers,
certificates, compression). What is decided here is whether a signal is
exported at all, by which protocol, and how long an attempt may take.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from .batching import BatchLimits
from .signals import SIGNALS, Signal
from .variables import headers_problem, variable_problems

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk._logs.export import LogRecordExporter
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.trace.export import SpanExporter

    from .rejections import Rejections

__all__ = [
    "Target",
    "batch_limits",
    "is_disabled",
    "log_exporter",
    "metric_exporter",
    "otlp_problems",
    "otlp_target",
    "prefers_delta",
    "prefers_exponential",
    "span_exporter",
]

_TIMEOUT_SECONDS = 3.0
"""Of one attempt with its retries. OpenTelemetry's own default is 10: a shutdown would wait for it."""
_HTTP, _GRPC = "http/protobuf", "grpc"
_GRPC_PACKAGE = "opentelemetry.exporter.otlp.proto.grpc"
_HTTP_PACKAGE = "opentelemetry.exporter.otlp.proto.http"
_EXPORTERS = {
    "traces": ("trace_exporter", "OTLPSpanExporter"),
    "metrics": ("metric_exporter", "OTLPMetricExporter"),
    "logs": ("_log_exporter", "OTLPLogExporter"),
}


@dataclass(frozen=True, slots=True)
class Target:
    """Where one signal goes."""

    signal: Signal
    protocol: str
    endpoint: str | None
    """The URL, where the setting names one; None leaves it to the exporter and its variables."""
    timeout_seconds: float | None
    """None where a variable says it. Python's exporters read seconds from it."""

    @property
    def address(self) -> str:
        """The endpoint for people: without a path, a query or a password, which may be secret."""
        given = self.endpoint or _variable(self.signal, "ENDPOINT")
        parts = urlsplit(given if "://" in given else f"//{given}")
        host = parts.netloc.rpartition("@")[2] or "the exporter's own default"
        return f"{parts.scheme}://{host}" if parts.scheme else host


def is_disabled() -> bool:
    """Whether ``OTEL_SDK_DISABLED`` switches everything off."""
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def prefers_delta() -> bool:
    """Whether histograms are to be sent with delta temporality."""
    name = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
    return os.environ.get(name, "").strip().lower() in {"delta", "lowmemory"}


def prefers_exponential() -> bool:
    """Whether histograms are to be sent with exponential buckets: unless a variable wants others."""
    name = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
    return os.environ.get(name, "").strip().lower() != "explicit_bucket_histogram"


def otlp_target(signal: Signal, endpoint: str) -> Target | None:
    """Return where a signal goes, or None where it stays here.

    Traces and metrics go out as soon as an endpoint is configured; logs only
    with ``OTEL_LOGS_EXPORTER=otlp``, because they are on stderr already.

    Args:
        signal: Which one.
        endpoint: The base URL from the settings; wins over the variables. May be empty.
    """
    if is_disabled():
        return None
    chosen = _chosen_exporters(signal)
    configured = bool(endpoint or _variable(signal, "ENDPOINT"))
    if "otlp" not in chosen and (chosen or not configured or signal == "logs"):
        return None
    protocol = _protocol(signal)
    url = endpoint.rstrip("/") or None
    if url and protocol == _HTTP:
        url = f"{url}/v1/{signal}"
    timeout = None if _variable(signal, "TIMEOUT") else _TIMEOUT_SECONDS
    return Target(signal, protocol, url, timeout)


def otlp_problems(endpoint: str) -> list[tuple[str, str]]:
    """Return what is wrong with the variables: pairs of a variable and a sentence without its name."""
    problems = variable_problems(disabled=is_disabled())
    for signal in SIGNALS:
        for exporter in _chosen_exporters(signal) - {"otlp", "none", "prometheus"}:
            name = f"OTEL_{signal.upper()}_EXPORTER"
            problems[name] = f"should be otlp or none; it is {exporter!r}"
        target = otlp_target(signal, endpoint)
        if target is not None:
            for what, text in _target_problems(target, endpoint):
                problems[_variable_name(signal, what)] = text
    return sorted(problems.items())


def _target_problems(target: Target, endpoint: str) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the variables of a signal that is sent, by what they are about."""
    given = partial(_variable, target.signal)
    if target.protocol not in {_HTTP, _GRPC}:
        yield "PROTOCOL", f"should be {_HTTP} or {_GRPC}; it is {target.protocol!r}"
    elif target.protocol == _GRPC and not _has_grpc():
        yield "PROTOCOL", 'is grpc, which needs a package: pip install "mlx-pharos[grpc]"'
    if not endpoint and not _is_url(given("ENDPOINT"), target.protocol):
        yield "ENDPOINT", "should be an http or https URL, like http://127.0.0.1:4318"
    if text := headers_problem(
        given("HEADERS"), "ascii" if target.protocol == _GRPC else "latin-1"
    ):
        yield "HEADERS", text
    if text := _compression_problem(given("COMPRESSION"), target.protocol):
        yield "COMPRESSION", text
    files = ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")
    for what in files if target.address.startswith("https:") else ():
        if (path := given(what)) and not os.access(path, os.R_OK):
            yield what, f"should be a file that can be read; {path!r} is not"


def _compression_problem(given: str, protocol: str) -> str:
    """Return what is wrong with a way to compress; without any nothing is compressed."""
    offered = ("gzip",) if protocol == _GRPC else ("gzip", "deflate", "none")
    if not given or given.strip().lower() in offered:
        return ""
    return f"should be {' or '.join(offered)}; it is {given[:40]!r}"


def span_exporter(target: Target, rejections: Rejections) -> SpanExporter:
    """Return an exporter of spans, which notes what the collector rejects."""
    exporter: SpanExporter = _exporter(target, rejections)
    return exporter


def metric_exporter(target: Target, rejections: Rejections) -> MetricExporter:
    """Return an exporter of metrics, which notes what the collector rejects."""
    exporter: MetricExporter = _exporter(target, rejections)
    return exporter


def log_exporter(target: Target, rejections: Rejections) -> LogRecordExporter:
    """Return an exporter of log records, which notes what the collector rejects."""
    exporter: LogRecordExporter = _exporter(target, rejections)
    return exporter


def _exporter(target: Target, rejections: Rejections) -> Any:  # noqa: ANN401 - one of three classes
    """Make an exporter. Imports it here: most servers export nothing, and gRPC is an extra."""
    options: dict[str, Any] = {"endpoint": target.endpoint, "timeout": target.timeout_seconds}
    if target.protocol == _HTTP and not _has_own_session(target.signal):
        sessions = importlib.import_module(".collector_session", __package__)
        options["session"] = sessions.collector_session(target.signal, rejections)
    package = _GRPC_PACKAGE if target.protocol == _GRPC else _HTTP_PACKAGE
    module, name = _EXPORTERS[target.signal]
    make = getattr(importlib.import_module(f"{package}.{module}"), name)
    return make(**options)


def _has_own_session(signal: Signal) -> bool:
    """Whether a variable names a plugin that brings a session, with credentials in it."""
    prefix = "OTEL_PYTHON_EXPORTER_OTLP_HTTP"
    names = (f"{prefix}_CREDENTIAL_PROVIDER", f"{prefix}_{signal.upper()}_CREDENTIAL_PROVIDER")
    return any(os.environ.get(name) for name in names)


def batch_limits(prefix: Literal["OTEL_BSP", "OTEL_BLRP"]) -> BatchLimits:
    """Return the limits of a batch from OpenTelemetry's variables; a start has checked them."""
    default = BatchLimits()
    queue = _number(f"{prefix}_MAX_QUEUE_SIZE", default.queue)
    return BatchLimits(
        queue=queue,
        batch=min(queue, _number(f"{prefix}_MAX_EXPORT_BATCH_SIZE", default.batch)),
        delay_seconds=_number(f"{prefix}_SCHEDULE_DELAY", round(default.delay_seconds * 1e3)) / 1e3,
    )


def _number(name: str, default: int) -> int:
    try:
        value = int(os.environ.get(name, ""))
    except ValueError:
        return default
    return value if value > 0 else default


def _chosen_exporters(signal: Signal) -> set[str]:
    given = os.environ.get(f"OTEL_{signal.upper()}_EXPORTER", "")
    return {each.strip().lower() for each in given.split(",")} - {""}


def _protocol(signal: Signal) -> str:
    return _variable(signal, "PROTOCOL").strip().lower() or _HTTP


def _variable_name(signal: Signal, what: str) -> str:
    """Return the variable that decides: the signal's own where it is set, else the one for all."""
    own = f"OTEL_EXPORTER_OTLP_{signal.upper()}_{what}"
    return own if os.environ.get(own) else f"OTEL_EXPORTER_OTLP_{what}"


def _variable(signal: Signal, what: str) -> str:
    return os.environ.get(_variable_name(signal, what), "")


def _is_url(text: str, protocol: str) -> bool:
    if not text:  # the exporter's default, on this machine
        return True
    try:
        parts = urlsplit(text)
        return (parts.scheme in {"http", "https"} and bool(parts.hostname)) or protocol == _GRPC
    except ValueError:
        return False


def _has_grpc() -> bool:
    try:
        return importlib.util.find_spec(_GRPC_PACKAGE) is not None
    except ModuleNotFoundError:
        return False
