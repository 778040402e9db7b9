"""Pages of other origins: what a browser is told that asks for one which was allowed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from flask import Response, current_app, request

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from .hosts import Origins

__all__ = ["cors_headers", "is_preflight", "preflight"]

_EXPOSED = (
    "Retry-After, X-Request-Id, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, "
    "x-ratelimit-reset-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, "
    "x-ratelimit-reset-tokens"
)
_HEADER_NAMES = re.compile(r"[A-Za-z0-9-]+( *, *[A-Za-z0-9-]+)*")
_PREFLIGHT_SECONDS = "600"


def cors_headers(origin: str | None, origins: Origins) -> list[tuple[str, str]]:
    """Return what lets pages of an allowed origin read an answer; nothing for others."""
    if origin is None or not origins.allows(origin):
        return []
    return [
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Expose-Headers", _EXPOSED),
        ("Vary", "Origin"),
    ]


def is_preflight(environ: WSGIEnvironment) -> bool:
    """Whether a browser asks on its own whether a page may send a request."""
    return (
        environ.get("REQUEST_METHOD") == "OPTIONS"
        and "HTTP_ORIGIN" in environ
        and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ
    )


def preflight() -> Response:
    """Tell a page the route's methods; its origin was judged, and the request itself will be."""
    methods = current_app.make_default_options_response().allow
    if not methods and request.routing_exception is not None:
        raise request.routing_exception
    asked = request.headers
    response = Response(status=204)
    response.headers["Access-Control-Allow-Methods"] = ", ".join(sorted(methods))
    names = asked.get("Access-Control-Request-Headers", "")
    if _HEADER_NAMES.fullmatch(names):
        response.headers["Access-Control-Allow-Headers"] = names
    response.headers["Access-Control-Max-Age"] = _PREFLIGHT_SECONDS
    if asked.get("Access-Control-Request-Private-Network") == "true":
        response.headers["Access-Control-Allow-Private-Network"] = "true"
    return response
