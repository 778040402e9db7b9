"""The routes about metrics: ``/metrics`` for Prometheus, ``/v1/metrics`` for older clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import Response, request

from ..telemetry.legacy import (
    PROMETHEUS_CONTENT_TYPE,
    LegacyQuery,
    check_metrics_access,
    legacy_json,
    legacy_prometheus,
)
from .json_text import encode_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Flask

    from ..telemetry.collector import MetricsCollector
    from ..telemetry.telemetry import Telemetry
    from .options import ServerOptions

__all__ = ["METRICS_PATHS", "add_metrics_routes"]

METRICS_PATHS = frozenset({"/metrics", "/v1/metrics"})
"""They have a key of their own."""
_FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-Ip", "Via")


def add_metrics_routes(
    app: Flask,
    options: ServerOptions,
    telemetry: Telemetry,
    collector: MetricsCollector,
    catch_up: Callable[[], None],
) -> None:
    """Add the routes to ``app``; both take GET and HEAD alone.

    ``catch_up`` records what has ended, if that was put off; see :class:`TelemetryMiddleware`.
    """
    routes = _Metrics(options, telemetry, collector, catch_up)
    for path, name, view in (
        ("/metrics", "metrics", routes.prometheus),
        ("/v1/metrics", "legacy_metrics", routes.legacy),
    ):
        app.add_url_rule(path, name, view, methods=["GET"], provide_automatic_options=False)


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
        self._telemetry = telemetry
        self._collector = collector

    def prometheus(self) -> Response:
        """``GET /metrics``: every instrument, as text or OpenMetrics."""
        self._check()
        self._catch_up()
        body, content_type = self._telemetry.prometheus.scrape(request.headers.get("Accept", ""))
        return Response(body, content_type=content_type)

    def legacy(self) -> Response:
        """``GET /v1/metrics``: the figures of the last five minutes."""
        self._check()
        self._catch_up()
        arguments = request.args
        query = LegacyQuery.parse(arguments.getlist("format"), arguments.getlist("category"))
        figures = self._collector.figures()
        if query.format == "json":
            body = encode_json(legacy_json(figures, query.categories))
            return Response(body, content_type="application/json")
        text = legacy_prometheus(figures, query.categories)
        return Response(text, content_type=PROMETHEUS_CONTENT_TYPE)

    def _check(self) -> None:
        headers = request.headers
        check_metrics_access(
            self._key,
            authorization=headers.get("Authorization", ""),
            address=request.remote_addr or "",
            forwarded=any(name in headers for name in _FORWARDED),
        )
