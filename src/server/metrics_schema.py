"""What ``GET /v1/metrics`` answers. A section is absent where ``category`` leaves it out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .strict_model import StrictModel

__all__ = ["LegacyMetrics"]

Measured = float | Literal["unavailable"]


class CacheMetrics(StrictModel):
    """The prompt cache since the start; each figure under both of its names."""

    hits: int
    misses: int
    hit_rate: float = Field(ge=0, le=1)
    """0.0 before the first lookup."""
    cache_hits: int
    cache_misses: int


class LatencyMetrics(StrictModel):
    """Generation requests of the last 300 s that were neither refused nor wrong, in ms."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    samples: int
    p50: float
    p95: float
    p99: float
    count: int


class MemoryMetrics(StrictModel):
    """Resident sets of server and engine together, in MiB."""

    current_mb: Measured
    peak_mb: Measured
    """The highest that was seen."""
    initial_mb: Measured
    """When the model was loaded."""
    growth_mb: Measured
    growth_percent: Measured


class ThroughputMetrics(StrictModel):
    """Generation requests that ended, however they did."""

    requests_per_second: float
    total_requests: int
    window_seconds: Literal[300]


class LegacyMetrics(StrictModel):
    """The figures of the last five minutes, and totals since the start."""

    timestamp: float
    """Seconds since 1970."""
    uptime_seconds: float
    cache: CacheMetrics | None = None
    latency: LatencyMetrics | None = None
    memory: MemoryMetrics | None = None
    throughput: ThroughputMetrics | None = None
