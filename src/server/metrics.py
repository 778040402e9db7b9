"""The routes about metrics: ``/metrics`` for Prometheus, ``/v1/metrics`` for older clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from ..telemetry.legacy import (
    PROMETHEUS_CONTENT_TYPE,
    LegacyQuery,
    check_metrics_access,
    legacy_json,
    legacy_prometheus,
)
from .hosts import Hosts
from .json_text import encode_json
from .reply import Reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..telemetry.collector import MetricsCollector
    from ..telemetry.telemetry import Telemetry
    from .operation import Operations
    from .options import ServerOptions

__all__ = ["metrics_operations"]

_FORWARDED = frozenset({"HTTP_FORWARDED", "HTTP_X_FORWARDED_FOR", "HTTP_X_REAL_IP", "HTTP_VIA"})


def metrics_operations(
    options: ServerOptions,
    telemetry: Telemetry,
    collector: MetricsCollector,
    catch_up: Callable[[], None],
) -> Operations:
    """Return the routes.

    ``catch_up`` records what has ended, if that was put off; see :class:`TelemetryMiddleware`.
    """
    routes = _Metrics(options, telemetry, collector, catch_up)
    return {"/metrics": routes.prometheus, "/v1/metrics": routes.legacy}


class _Metrics:
    """Answers from what is measured at the moment; never waits for the engine."""

    def __init__(
        self,
        options: ServerOptions,
        telemetry: Telemetry,
        collector: MetricsCollector,
        catch_up: Callable[[], None],
    ) -> None:
        self._catch_up = catch_up
        self._key = options.metrics_api_key
        self._hosts = Hosts(options.host, (options.operations_host, *options.allowed_hosts))
        self._telemetry = telemetry
        self._collector = collector

    def prometheus(self, environ: dict[str, Any]) -> Reply:
        """``GET /metrics``: every instrument, as text or OpenMetrics."""
        self._check(environ)
        self._catch_up()
        text, content_type = self._telemetry.prometheus.scrape(environ.get("HTTP_ACCEPT", ""))
        return Reply(text.encode(), content_type)

    def legacy(self, environ: dict[str, Any]) -> Reply:
        """``GET /v1/metrics``: the figures of the last five minutes."""
        self._check(environ)
        self._catch_up()
        query = _query(environ.get("QUERY_STRING", ""))
        figures = self._collector.figures()
        if query.format == "json":
            return Reply(encode_json(legacy_json(figures, query.categories)))
        text = legacy_prometheus(figures, query.categories)
        return Reply(text.encode(), PROMETHEUS_CONTENT_TYPE)

    def _check(self, environ: dict[str, Any]) -> None:
        host = environ.get("HTTP_HOST")
        check_metrics_access(
            self._key,
            authorization=environ.get("HTTP_AUTHORIZATION", ""),
            address=environ.get("REMOTE_ADDR", ""),
            forwarded=not environ.keys().isdisjoint(_FORWARDED),
            named=host is None or self._hosts.knows(host),
        )


def _query(text: str) -> LegacyQuery:
    if not text:  # as almost all polls
        return LegacyQuery()
    asked = parse_qs(text, keep_blank_values=True)
    return LegacyQuery.parse(asked.get("format", ()), asked.get("category", ()))
