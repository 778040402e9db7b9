"""``MetricsCollector``: the instruments by the names that an older server's users know.

The server records through it, so it is a face of the same instruments, not a
second count beside them. Made without arguments it has instruments of its own,
which no exporter reads.
"""

from __future__ import annotations

import math
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics import MeterProvider

from . import attributes as a
from .instruments import Instruments
from .legacy import CATEGORIES, LegacyFigures, legacy_json, legacy_prometheus
from .memory import ResidentMemory
from .reading import Reading
from .record import REFUSED_CODES, REJECTED_CODES
from .window import WindowReader

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from opentelemetry.trace import SpanContext

    from .folded import FoldedHistogram
    from .totals import Sum

__all__ = ["MetricsCollector", "make_window"]

_MEMORY_SECONDS = 1.0
"""Between two looks at the processes that nobody asked for."""


def make_window(*, clock: Callable[[], float] = time.monotonic) -> WindowReader:
    """Return the reader that a collector's MeterProvider has to have."""
    not_taken = REFUSED_CODES | REJECTED_CODES
    return WindowReader(
        histogram="gen_ai.server.request.duration",
        counts=lambda attributes: attributes.get(a.ERROR_TYPE.name) not in not_taken,
        clock=clock,
    )


class MetricsCollector:
    """Counts and reports. Safe from any thread."""

    def __init__(
        self,
        instruments: Instruments | None = None,
        window: WindowReader | None = None,
        memory: ResidentMemory | None = None,
        *,
        enable_memory_tracking: bool = True,
        enable_latency_tracking: bool = True,
    ) -> None:
        """Be the face of ``instruments``.

        Args:
            instruments: Of the process; some of its own where there are none.
            window: A reader of the same MeterProvider; given together with ``instruments``.
            memory: The processes that count, whose owner says when they have begun; this one alone,
                as of now, where nothing else is said.
            enable_memory_tracking: Whether memory is measured at all.
            enable_latency_tracking: Whether latencies are recorded at all.
        """
        if instruments is None or window is None:
            window = make_window()
            provider = MeterProvider(metric_readers=[window], shutdown_on_exit=False)
            instruments = Instruments(provider.get_meter(__name__))
        self._instruments = instruments
        self._window = window
        window.follow(instruments.folded)
        self._tracks_memory = enable_memory_tracking
        self._memory = memory or self._own_memory()
        self._tracks_latency = enable_latency_tracking
        self._lock = threading.Lock()
        self._lookups = dict.fromkeys(a.LOOKUP_RESULT.values, 0)
        self._before_reset = dict(self._lookups)
        self._memory_at = -math.inf
        instruments.observe("pharos.prompt_cache.lookups", self._read_lookups)

    # -- recording ------------------------------------------------------------

    def record_cache_hit(self, count: int = 1) -> None:
        """Count prompts of which a prefix was in the cache."""
        self._look_up("hit", count)

    def record_cache_miss(self, count: int = 1) -> None:
        """Count prompts of which nothing was in the cache."""
        self._look_up("miss", count)

    def record_cache_bypass(self, count: int = 1) -> None:
        """Count prompts that were not looked up."""
        self._look_up("bypass", count)

    def record_latency(self, latency_ms: float) -> None:
        """Record a generation request's latency in ms; raises ValueError where it is negative."""
        if not latency_ms >= 0:
            raise ValueError(f"a latency cannot be {latency_ms} ms")
        if self._tracks_latency:
            series = self._instruments.gen_ai_request_duration.at({})
            self.take_latency(latency_ms / 1000.0, series)

    def take_latency(
        self, seconds: float, series: FoldedHistogram, mark: SpanContext | None = None
    ) -> None:
        """Record a generation request's latency in seconds.

        Args:
            seconds: Not negative.
            series: Of ``gen_ai.server.request.duration``, by what is known of the request.
            mark: Its span, an example of the figure.
        """
        if self._tracks_latency:
            self._window.advance()
            series.fold(seconds, mark=mark)

    def record_throughput(self) -> None:
        """Count a generation request that has ended."""
        self.count_request(self._instruments.requests_finished.at({}))

    def count_request(self, series: Sum) -> None:
        """Count a generation request that has ended, in a series of ``pharos.requests.finished``."""
        self._window.count()
        series.add(1)
        now = time.monotonic()
        if now - self._memory_at >= _MEMORY_SECONDS:
            self._memory_at = now
            self.record_memory_usage()

    def record_memory_usage(self) -> None:
        """Look at the processes' memory now, so that a peak is seen."""
        if self._tracks_memory:
            self._memory.total()

    # -- reporting ------------------------------------------------------------

    def get_cache_stats(self) -> dict[str, Any]:
        """Return ``hits``, ``misses`` and ``hit_rate`` (0.0 to 1.0)."""
        return self._section("cache")

    def get_latency_stats(self) -> dict[str, Any]:
        """Return ``p50``, ``p95`` and ``p99`` in ms over the last 300 s, and how many they are of."""
        return self._section("latency")

    def get_memory_stats(self) -> dict[str, Any]:
        """Return the resident set in MiB: ``current_mb``, ``peak_mb``, ``initial_mb``, growth."""
        return self._section("memory")

    def get_throughput_stats(self) -> dict[str, Any]:
        """Return ``requests_per_second`` over the last 300 s and ``total_requests``."""
        return self._section("throughput")

    def export_metrics_json(self, categories: Collection[str] = CATEGORIES) -> dict[str, Any]:
        """Return the legacy JSON answer."""
        return legacy_json(self.figures(), categories)

    def export_metrics_prometheus(self, categories: Collection[str] = CATEGORIES) -> str:
        """Return the legacy names as Prometheus text."""
        return legacy_prometheus(self.figures(), categories)

    def figures(self) -> LegacyFigures:
        """Measure everything now."""
        window = self._window.read()
        with self._lock:
            hits, misses = (
                self._lookups[result] - self._before_reset[result] for result in ("hit", "miss")
            )
        memory = self._memory if self._tracks_memory else None
        p50, p95, p99 = window.latencies.percentiles(0.5, 0.95, 0.99)
        return LegacyFigures(
            timestamp=time.time(),
            uptime_seconds=window.uptime,
            cache_hits=hits,
            cache_misses=misses,
            latency_seconds=(p50, p95, p99),
            latency_samples=window.latencies.count,
            memory_bytes=memory.total() if memory else None,
            memory_peak_bytes=memory.peak if memory else None,
            memory_initial_bytes=memory.initial if memory else None,
            requests_per_second=window.per_second,
            total_requests=window.total,
        )

    def reset(self) -> None:
        """Let the reports begin at zero. What is exported goes on: totals never fall."""
        self._window.reset()
        with self._lock:
            self._before_reset = dict(self._lookups)
        if self._tracks_memory:
            self._memory.reset()

    # -- inside ---------------------------------------------------------------

    def _own_memory(self) -> ResidentMemory:
        memory = ResidentMemory(lambda: {"server": os.getpid()})
        if self._tracks_memory:
            memory.mark()
        return memory

    def _look_up(self, result: str, count: int) -> None:
        with self._lock:
            self._lookups[result] += count

    def _read_lookups(self) -> list[Reading]:
        with self._lock:
            return [
                Reading(count, {a.LOOKUP_RESULT.name: result})
                for result, count in self._lookups.items()
            ]

    def _section(self, name: str) -> dict[str, Any]:
        section: dict[str, Any] = legacy_json(self.figures(), [name])[name]
        return section
