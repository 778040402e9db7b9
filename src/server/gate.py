"""What is asked of every request before its route, and what every answer carries."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from flask import Response, current_app, g, request

from ..resilience.errors import RouteNotFoundError
from .auth import ANONYMOUS, check_api_key
from .hosts import Hosts, Origins
from .metrics import METRICS_PATHS

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from flask import Flask

    from ..resilience.rates import Rates
    from .options import ServerOptions

__all__ = ["OPERATION_PATHS", "REFUSAL", "add_gate", "operations"]

OPERATION_PATHS = METRICS_PATHS | {"/livez", "/readyz", "/health"}
"""All that the second listener answers."""
REFUSAL: Final = "pharos.refusal"
"""Where a request's environment has the error that its parser found."""
_OPERATIONS: Final = "pharos.operations"
_EXPOSED = (
    "Retry-After, X-Request-Id, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, "
    "x-ratelimit-reset-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, "
    "x-ratelimit-reset-tokens"
)
_HEADER_NAMES = re.compile(r"[A-Za-z0-9-]+( *, *[A-Za-z0-9-]+)*")
_PREFLIGHT_SECONDS = "600"


def operations(application: WSGIApplication) -> WSGIApplication:
    """Return the application as the listener for operations has it: without the API."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> object:
        environ[_OPERATIONS] = True
        return application(environ, start_response)

    return answer  # type: ignore[return-value] # an iterable, as the application returns it


def add_gate(app: Flask, options: ServerOptions, rates: Rates) -> None:
    """Judge each request by its parser, its host, its origin and its key, in this order.

    A preflight has no key, and is answered here.
    """
    gate = _Gate(options, rates)
    app.before_request(gate.judge)
    app.after_request(gate.finish)


class _Gate:
    """One object, called by many threads."""

    def __init__(self, options: ServerOptions, rates: Rates) -> None:
        self._keys = options.api_keys
        self._hosts = Hosts(options.host, options.allowed_hosts)
        self._operation_hosts = Hosts(options.operations_host, options.allowed_hosts)
        self._origins = Origins(
            options.allowed_origins,
            names_are_known=bool(options.api_keys) or not self._hosts.guessed,
        )
        self._rates = rates

    def judge(self) -> Response | None:
        """Raise what is wrong; return an answer for a preflight alone."""
        if REFUSAL in request.environ:
            raise request.environ[REFUSAL]
        headers, path = request.headers, request.path
        host, origin = headers.get("Host"), headers.get("Origin")
        if _OPERATIONS in request.environ:
            self._operation_hosts.check(host)
            if path not in OPERATION_PATHS:
                message = "This address has the routes for operations alone."
                raise RouteNotFoundError(message)
        else:
            self._hosts.check(host)
        self._origins.check(origin, host)
        asks = origin is not None and "Access-Control-Request-Method" in headers
        if request.method == "OPTIONS" and asks:
            return _preflight()
        if path.startswith("/v1/") and path not in METRICS_PATHS:
            g.tenant = check_api_key(headers.get("Authorization", ""), self._keys)
        return None

    def finish(self, response: Response) -> Response:
        """Add the headers of CORS and of the rates."""
        response.headers.update(_cors_headers(request.headers.get("Origin"), self._origins))
        if g.get("rated", False):
            for left in self._rates.allowances(g.get("tenant", ANONYMOUS)):
                name = left.resource
                response.headers[f"x-ratelimit-limit-{name}"] = str(left.limit)
                response.headers[f"x-ratelimit-remaining-{name}"] = str(left.remaining)
                response.headers[f"x-ratelimit-reset-{name}"] = f"{left.reset_seconds:.3f}s"
        return response


def _cors_headers(origin: str | None, origins: Origins) -> dict[str, str]:
    """Return what lets pages of an allowed origin read an answer; nothing for others."""
    if origin is None or not origins.allows(origin):
        return {}
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": _EXPOSED,
        "Vary": "Origin",
    }


def _preflight() -> Response:
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
