"""The one owner of telemetry in the server process: providers, readers, exporters."""

from __future__ import annotations

import logging
import os
import platform
import socket
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, Self

from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.metrics import (
    Counter,
    Histogram,
    MeterProvider,
    ObservableCounter,
    ObservableGauge,
    ObservableUpDownCounter,
    UpDownCounter,
)
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.sdk.version import __version__ as sdk_version

from .. import __version__
from .content import captures_content
from .exporting import LogQueue, MetricSender, SpanQueue
from .folded import FoldedSet
from .instruments import Instruments
from .losses import Losses, ThrottledLog
from .otlp import (
    batch_limits,
    is_disabled,
    log_exporter,
    metric_exporter,
    otlp_target,
    prefers_delta,
    prefers_exponential,
    span_exporter,
)
from .otlp_log import OtlpLogHandler
from .prometheus_view import PrometheusView
from .rejections import Rejections
from .request_span import EachSpan
from .window import WindowReader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.trace import SpanProcessor

__all__ = ["BUDGET_SECONDS", "Telemetry", "TelemetryOptions"]

_SCOPE = "mlx_pharos"
BUDGET_SECONDS = 5.0
"""The longest that a shutdown takes, whatever the collector does."""
_MARGIN_SECONDS = 0.25
"""Of the budget, for what comes after the last export."""
_SERIES = 1000
"""Series per instrument and reader at most; the closed sets of the catalog stay far below."""
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""Machines whose name in the semantic conventions is another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryOptions:
    """What the operator decides; the rest is in OpenTelemetry's own variables."""

    model: str
    """The first served name."""
    otlp_endpoint: str = ""
    """The collector's base URL; empty leaves it to ``OTEL_EXPORTER_OTLP_ENDPOINT``."""
    vllm_names: bool = False
    """Whether ``/metrics`` has vLLM's names too."""


class _Closable(Protocol):
    def close(self, timeout_seconds: float) -> None: ...


class Telemetry:
    """Lives as long as the server; :meth:`shutdown` ends it within a budget.

    Nothing is registered globally: whoever records has been given this object.
    """

    def __init__(
        self,
        options: TelemetryOptions,
        *,
        window: WindowReader | None = None,
        span_processors: Sequence[SpanProcessor] = (),
        metric_readers: Sequence[MetricReader] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read OpenTelemetry's variables and start what they ask for.

        Args:
            options: From the settings.
            window: Of the legacy metrics; its own where there is none.
            span_processors: Further ones, which get every sampled span.
            metric_readers: Further ones.
            clock: Seconds, monotonic; for the log's limit alone.
        """
        self.resource = _resource()
        self.folded = FoldedSet()
        self._log = ThrottledLog(clock)
        self.losses = Losses(self._log)
        self._limits = _cardinality_limits()
        self.captures_content = captures_content()
        """Whether the operator wants prompts and answers on spans."""
        self._closables: list[_Closable] = []
        self._shut = threading.Lock()
        self._is_shut = False
        self.window = window or WindowReader(histogram="gen_ai.server.request.duration")
        self._log.open()
        readers = [self.window, *metric_readers]
        self._meters = MeterProvider(
            [*readers, *self._metric_senders(options)],
            resource=self.resource,
            shutdown_on_exit=False,
        )
        self.meter = self._meters.get_meter(_SCOPE, __version__)
        processors = [*self._span_queues(options), *map(EachSpan, span_processors)]
        self._tracers = TracerProvider(
            # Nobody would see the spans: ids for the log are all that is made of them.
            sampler=None if processors else ALWAYS_OFF,
            resource=self.resource,
            shutdown_on_exit=False,
        )
        for processor in processors:
            self._tracers.add_span_processor(processor)
        self.tracer = self._tracers.get_tracer(_SCOPE, __version__)
        self._log_handler = self._log_sender(options)
        self.instruments = Instruments(self.meter, folded=self.folded, model=options.model)
        self.instruments.observe("pharos.telemetry.dropped", self.losses.readings)
        self.prometheus = PrometheusView(
            self.instruments,
            self.resource.attributes,
            vllm_model=options.model if options.vllm_names else "",
            enabled=not is_disabled(),
        )

    @classmethod
    def from_environment(cls, options: TelemetryOptions) -> Self:
        """Return the telemetry of this process."""
        return cls(options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()

    @property
    def exports(self) -> bool:
        """Whether anything is sent anywhere."""
        return bool(self._closables)

    def shutdown(self, budget_seconds: float = BUDGET_SECONDS) -> bool:
        """Send what waits, all signals at the same time, and stop. Safe to call again.

        Args:
            budget_seconds: After which it returns, whatever the collector does.

        Returns:
            Whether everything was done in time. What was not sent is in ``losses``,
            and in the last line of the log.
        """
        with self._shut:
            if self._is_shut:
                return True
            self._is_shut = True
        self.losses.begin_shutdown()
        if self._log_handler is not None:
            logging.getLogger().removeHandler(self._log_handler)
        patience = max(0.0, budget_seconds - _MARGIN_SECONDS)
        threads = [
            threading.Thread(
                target=each.close, args=(patience,), name="telemetry-close", daemon=True
            )
            for each in self._closables
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + budget_seconds
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        in_time = not any(thread.is_alive() for thread in threads)
        self.losses.tell_shutdown(complete=in_time)
        self._log.close()
        return in_time

    def force_flush(self) -> None:
        """Send what waits, in the calling thread. For tests: it has no deadline."""
        self._tracers.force_flush()
        self._meters.force_flush()

    def _metric_senders(self, options: TelemetryOptions) -> list[MetricReader]:
        target = otlp_target("metrics", options.otlp_endpoint)
        if target is None:
            return []
        self.folded.exponential = prefers_exponential()
        rejections = Rejections()
        sender = MetricSender(
            metric_exporter(target, rejections),
            rejections,
            self.folded,
            self.losses,
            delta=prefers_delta(),
            cardinality_limits=self._limits,
        )
        self._closables.append(sender)
        return [sender]

    def _span_queues(self, options: TelemetryOptions) -> list[SpanProcessor]:
        target = otlp_target("traces", options.otlp_endpoint)
        if target is None:
            return []
        rejections = Rejections()
        exporter = span_exporter(target, rejections)
        queue = SpanQueue(exporter, rejections, self.losses, batch_limits("OTEL_BSP"))
        self._closables.append(queue)
        return [queue]

    def _log_sender(self, options: TelemetryOptions) -> OtlpLogHandler | None:
        target = otlp_target("logs", options.otlp_endpoint)
        if target is None:
            return None
        rejections = Rejections()
        exporter = log_exporter(target, rejections)
        queue = LogQueue(exporter, rejections, self.losses, batch_limits("OTEL_BLRP"))
        self._closables.append(queue)
        provider = LoggerProvider(resource=self.resource, shutdown_on_exit=False)
        provider.add_log_record_processor(queue)
        handler = OtlpLogHandler(provider, queue)
        logging.getLogger().addHandler(handler)
        return handler


def _resource() -> Resource:
    """Say what this process is; OpenTelemetry's variables win. No path, no command line."""
    known = Resource(
        {
            "service.name": "pharos",
            "service.version": __version__,
            "service.instance.id": str(uuid.uuid4()),
            "host.name": socket.gethostname(),
            "host.arch": _ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os.type": sys.platform,
            "process.pid": os.getpid(),
            "process.runtime.name": sys.implementation.name,
            "process.runtime.version": platform.python_version(),
            # The SDK's own resource has these; its detectors are not asked for the rest.
            "telemetry.sdk.language": "python",
            "telemetry.sdk.name": "opentelemetry",
            "telemetry.sdk.version": sdk_version,
        }
    )
    merged = known.merge(OTELResourceDetector().detect())
    attributes = {
        _utf8(name): _utf8(value) if isinstance(value, str) else value
        for name, value in merged.attributes.items()
    }
    return _FixedResource(attributes, merged.schema_url)


def _utf8(text: str) -> str:
    """Replace what cannot be sent: bytes of a variable that are no UTF-8."""
    return text.encode("utf-8", "replace").decode()


class _FixedResource(Resource):
    """Knows its hash. The SDK's resource writes itself out as JSON for it, once per span that is sent."""

    @cached_property
    def _hash(self) -> int:
        return super().__hash__()

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or super().__eq__(other)


def _cardinality_limits() -> dict[type, int]:
    return dict.fromkeys(
        (
            Counter,
            Histogram,
            ObservableCounter,
            ObservableGauge,
            ObservableUpDownCounter,
            UpDownCounter,
        ),
        _SERIES,
    )
