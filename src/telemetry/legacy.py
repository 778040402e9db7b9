"""``GET /v1/metrics``: the answer that an older server's users read, with measured numbers.

Two dialects of it exist, so a figure that had two names stands under both. What
the figures are is :class:`LegacyFigures`; where they come from is not known
here.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from ..resilience.errors import InvalidRequestError, MetricsForbiddenError
from .window import WINDOW_SECONDS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

__all__ = [
    "CATEGORIES",
    "PROMETHEUS_CONTENT_TYPE",
    "LegacyFigures",
    "LegacyQuery",
    "Measured",
    "check_metrics_access",
    "legacy_json",
    "legacy_prometheus",
]

CATEGORIES = ("cache", "latency", "memory", "throughput")
FORMATS = ("json", "prometheus")
PROMETHEUS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MIB = 1024 * 1024
_ADDRESSES = 256
"""Of clients, of which it is remembered whether they are on this machine: those who poll are few."""

Measured = float | Literal["unavailable"]
"""A number, or the word that the older server used where it could not measure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LegacyFigures:
    """Everything that the answer says, measured at one moment."""

    timestamp: float
    """Seconds since 1970."""
    uptime_seconds: float
    cache_hits: int
    cache_misses: int
    latency_seconds: tuple[float, float, float]
    """Percentiles 50, 95 and 99 over the window; zeros where nothing ended in it."""
    latency_samples: int
    memory_bytes: int | None
    """Resident set of all processes now; None where the system does not say."""
    memory_peak_bytes: int | None
    memory_initial_bytes: int | None
    """When the model was loaded."""
    requests_per_second: float
    total_requests: int

    @property
    def hit_rate(self) -> float:
        """The share of lookups that hit; 0.0 before the first."""
        lookups = self.cache_hits + self.cache_misses
        return self.cache_hits / lookups if lookups else 0.0

    @property
    def memory_growth_bytes(self) -> int | None:
        """What was gained since the model was loaded."""
        if self.memory_bytes is None or self.memory_initial_bytes is None:
            return None
        return self.memory_bytes - self.memory_initial_bytes

    @property
    def memory_growth_percent(self) -> Measured:
        """The gain in percent of what the processes held when the model was loaded."""
        growth = self.memory_growth_bytes
        if growth is None or not self.memory_initial_bytes:
            return "unavailable"
        return 100.0 * growth / self.memory_initial_bytes


@dataclass(frozen=True, slots=True)
class LegacyQuery:
    """What the query string asks for."""

    format: str = "json"
    categories: frozenset[str] = frozenset(CATEGORIES)

    @classmethod
    def parse(cls, formats: Sequence[str], categories: Sequence[str]) -> LegacyQuery:
        """Read the values of ``format`` and ``category``; each may be given several times.

        Raises:
            InvalidRequestError: A value is not one of those there are.
        """
        if any(each not in FORMATS for each in formats) or len(set(formats)) > 1:
            message = "'format' must be json or prometheus."
            raise InvalidRequestError(message, param="format")
        wanted = [name.strip() for each in categories for name in each.split(",")]
        if any(name not in CATEGORIES for name in wanted):
            message = f"'category' must be some of {', '.join(CATEGORIES)}, joined with commas."
            raise InvalidRequestError(message, param="category")
        return cls(formats[0] if formats else "json", frozenset(wanted or CATEGORIES))


def check_metrics_access(
    key: str, *, authorization: str, address: str, forwarded: bool = False, named: bool = True
) -> None:
    """Decide who may read metrics: whoever has the key; without one, this machine alone. Any thread.

    A browser on this machine reads what a page of a hostile site asks for, where that site has
    pointed its name here; so without a key the name counts, too.

    Args:
        key: The key that is wanted; empty where none is configured.
        authorization: The request's header; empty where it has none.
        address: The client's address.
        forwarded: Whether a proxy says that it speaks for somebody else.
        named: Whether the request's Host is known to be a name of this server; True
            where it has none, as no browser's.

    Raises:
        MetricsForbiddenError: The key is missing or another one, or there is
            none and the client is not on this machine, or asks by a foreign name.
    """
    if not key:
        if forwarded or not _is_loopback(address):
            message = (
                "Metrics are for clients on the server's own machine, because no metrics key is "
                "configured. Set METRICS_API_KEY and send it as a bearer token."
            )
            raise MetricsForbiddenError(message)
        if not named:
            message = (
                "Without a metrics key the header 'Host' must name the server's own machine, as "
                "localhost and 127.0.0.1 do, or be listed in the setting allowed_hosts. Use such a "
                "name, or set PHAROS_METRICS_API_KEY and send it as a bearer token."
            )
            raise MetricsForbiddenError(message)
        return
    scheme, _, credentials = authorization.partition(" ")
    given = credentials.strip() if scheme.lower() == "bearer" else ""
    # Digests have one length, so the comparison says nothing about the key's.
    digests = (
        hashlib.sha256(text).digest() for text in (given.encode("latin-1", "replace"), key.encode())
    )
    if not hmac.compare_digest(*digests) or not given:
        message = "Metrics need their key: send 'Authorization: Bearer <metrics key>'."
        raise MetricsForbiddenError(message)


def legacy_json(figures: LegacyFigures, categories: Collection[str]) -> dict[str, Any]:
    """Return the JSON answer: time and uptime always, and the categories asked for."""
    sections = {
        "cache": _cache,
        "latency": _latency,
        "memory": _memory,
        "throughput": _throughput,
    }
    answer: dict[str, Any] = {
        "timestamp": figures.timestamp,
        "uptime_seconds": figures.uptime_seconds,
    }
    answer.update(
        (name, section(figures)) for name, section in sections.items() if name in categories
    )
    return answer


def legacy_prometheus(figures: LegacyFigures, categories: Collection[str]) -> str:
    """Return the text exposition with the names of both dialects. What is not measured is left out."""
    lines: list[str] = []
    for name, kind, text, value in _samples(figures, categories):
        if value != "unavailable":
            lines += (f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name} {value}")
    return "\n".join([*lines, ""])


def _cache(figures: LegacyFigures) -> dict[str, Any]:
    hits, misses = figures.cache_hits, figures.cache_misses
    return {
        "hits": hits,
        "misses": misses,
        "hit_rate": figures.hit_rate,
        "cache_hits": hits,
        "cache_misses": misses,
    }


def _latency(figures: LegacyFigures) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    for share, seconds in zip((50, 95, 99), figures.latency_seconds, strict=True):
        answer[f"p{share}_ms"] = answer[f"p{share}"] = seconds * 1000.0
    answer["samples"] = answer["count"] = figures.latency_samples
    return answer


def _memory(figures: LegacyFigures) -> dict[str, Any]:
    return {
        "current_mb": _mib(figures.memory_bytes),
        "peak_mb": _mib(figures.memory_peak_bytes),
        "initial_mb": _mib(figures.memory_initial_bytes),
        "growth_mb": _mib(figures.memory_growth_bytes),
        "growth_percent": figures.memory_growth_percent,
    }


def _throughput(figures: LegacyFigures) -> dict[str, Any]:
    return {
        "requests_per_second": figures.requests_per_second,
        "total_requests": figures.total_requests,
        "window_seconds": WINDOW_SECONDS,
    }


def _mib(size: int | None) -> Measured:
    return "unavailable" if size is None else size / _MIB


def _samples(
    figures: LegacyFigures, categories: Collection[str]
) -> Iterator[tuple[str, str, str, Measured]]:
    if "cache" in categories:
        yield from _cache_samples(figures)
    if "latency" in categories:
        yield from _latency_samples(figures)
    if "memory" in categories:
        yield from _memory_samples(figures)
    if "throughput" in categories:
        rate, total = figures.requests_per_second, figures.total_requests
        text = "Generation requests that ended per second, over the window."
        yield "mlx_server_throughput_rps", "gauge", text, rate
        yield "requests_per_second", "gauge", text, rate
        yield "requests_total", "counter", "Generation requests that ended.", total
    text = "Seconds since the server started."
    yield "mlx_server_uptime_seconds", "counter", text, figures.uptime_seconds


def _cache_samples(figures: LegacyFigures) -> Iterator[tuple[str, str, str, Measured]]:
    hits, misses = figures.cache_hits, figures.cache_misses
    for name in ("mlx_server_cache_hits", "cache_hit_total"):
        yield name, "counter", "Prompt cache lookups that found a prefix.", hits
    for name in ("mlx_server_cache_misses", "cache_miss_total"):
        yield name, "counter", "Prompt cache lookups that found nothing.", misses
    for name in ("mlx_server_cache_hit_rate", "cache_hit_rate"):
        yield name, "gauge", "Share of prompt cache lookups that hit, 0 to 1.", figures.hit_rate


def _latency_samples(figures: LegacyFigures) -> Iterator[tuple[str, str, str, Measured]]:
    for share, seconds in zip((50, 95, 99), figures.latency_seconds, strict=True):
        text = f"Percentile {share} of generation request latency in ms, over the window."
        yield f"mlx_server_latency_p{share}_ms", "gauge", text, seconds * 1000.0
        yield f"request_latency_p{share}", "gauge", text, seconds * 1000.0


def _memory_samples(figures: LegacyFigures) -> Iterator[tuple[str, str, str, Measured]]:
    current = _mib(figures.memory_bytes)
    text = "Resident set of the server's processes in MiB."
    yield "mlx_server_memory_current_mb", "gauge", text, current
    yield "memory_current_mb", "gauge", text, current
    text = "Highest resident set that was seen, in MiB."
    yield "mlx_server_memory_peak_mb", "gauge", text, _mib(figures.memory_peak_bytes)
    text = "Resident set gained since the model was loaded, in MiB."
    yield "mlx_server_memory_growth_mb", "gauge", text, _mib(figures.memory_growth_bytes)


@lru_cache(maxsize=_ADDRESSES)
def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    return parsed.is_loopback
