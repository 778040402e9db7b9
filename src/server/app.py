"""The Flask application: every route, and every error in OpenAI's shape.

The order in which a request is judged: can it be parsed, host, origin, key, the rate of its client, is
there any place (so far by the gate, from its head); route, can the body be read, is the model served,
does the engine take it.
Whatever goes wrong, the client gets JSON that says what and what to do; the text
of an unexpected exception stays in the log.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from ..resilience.errors import (
    MethodNotAllowedError,
    PharosError,
    RouteNotFoundError,
)
from ..resilience.rates import Rates
from ..telemetry.collector import MetricsCollector, make_window
from ..telemetry.http import TelemetryMiddleware, exchange_of
from ..telemetry.recorder import Recorder
from ..telemetry.spans import SpanWriter
from ..telemetry.telemetry import Telemetry, TelemetryOptions
from .admittance import Admittance
from .cache_observation import CacheHealthFolder
from .cors import is_preflight, preflight
from .error_answer import error_reply
from .foreign_errors import told_error
from .gate import Gate
from .generate import GenerateRoute
from .json_body import shown
from .metrics import metrics_operations
from .observation import StepFolder, observe_engine, resident_memory
from .operation import Operations, add_rules
from .places import PLACES, Places
from .policy_observation import RestartCounter, ResumeCounter
from .probes import probe_operations
from .reply import flask_response
from .reports import add_report_routes
from .run import ClientGoneError
from .shutdown import Shutdown

if TYPE_CHECKING:
    from ..engine.client import EngineClient
    from .options import ServerOptions

__all__ = ["create_app", "start_telemetry"]

_log = logging.getLogger(__name__)

_CLIENT_CLOSED_REQUEST = 499
"""nginx' status for a client that left; only the log ever sees it."""


def create_app(
    options: ServerOptions,
    engine: EngineClient,
    telemetry: Telemetry,
    shutdown: Shutdown | None = None,
) -> Flask:
    """Return the WSGI application.

    Args:
        options: Fixed for the application's life.
        engine: Owned by the caller.
        telemetry: Owned by the caller, who shuts it down. It serves one application.
        shutdown: Shared with the listener; its own where there is none.
    """
    app = Flask("mlx_pharos", static_folder=None)
    # A path with two slashes is another path: a redirect would only confuse clients that post.
    app.url_map.merge_slashes = False
    app.url_map.strict_slashes = False
    shutdown = shutdown or Shutdown()
    _add_errors(app)
    app.before_request(_begin)
    rates = Rates(requests=options.requests_per_minute, tokens=options.tokens_per_minute)
    admittance = Admittance(rates, engine, options.api_keys)
    generate = GenerateRoute(
        options, engine, shutdown, rates, admittance, captures_content=telemetry.captures_content
    )
    app.add_url_rule("/v1/chat/completions", "chat_completions", generate.chat, methods=["POST"])
    app.add_url_rule("/v1/completions", "completions", generate.completion, methods=["POST"])
    add_report_routes(app, options, started_at=int(time.time()))
    app.extensions[PLACES] = Places(options, admittance)
    operations = probe_operations(options, engine, shutdown)
    app.wsgi_app = Gate(app, options, admittance, operations)  # type: ignore[method-assign] # Flask's own way
    operations |= _add_telemetry(app, options, engine, telemetry)
    add_rules(app, operations)
    return app


def start_telemetry(options: ServerOptions) -> Telemetry:
    """Return telemetry as the options and OpenTelemetry's variables want it; its receiver owns it."""
    return Telemetry(
        TelemetryOptions(
            model=options.model_name,
            otlp_endpoint=options.otlp_endpoint,
            vllm_names=options.vllm_names,
        ),
        window=make_window(),
    )


def _add_telemetry(
    app: Flask, options: ServerOptions, engine: EngineClient, telemetry: Telemetry
) -> Operations:
    """Record every request and every step; return the routes that show what was recorded."""
    instruments = telemetry.instruments
    memory = resident_memory(engine)
    collector = MetricsCollector(instruments, telemetry.window, memory)
    observe_engine(instruments, options, engine, memory)
    folder = StepFolder(instruments, collector, cache_health=CacheHealthFolder(instruments, engine))
    engine.on_step = folder
    engine.on_lost = folder.forget
    engine.on_loaded = memory.mark
    restarts = RestartCounter(instruments)

    def restarted(ending: str) -> None:
        restarts(ending)
        folder.restarted()

    engine.on_restart = restarted
    engine.on_resume = ResumeCounter(instruments)
    if engine.loaded is not None:
        memory.mark()
    recorder = Recorder(instruments, collector, models=options.served_model_names)
    middleware = TelemetryMiddleware(app.wsgi_app, recorder, SpanWriter(telemetry.tracer))
    app.wsgi_app = middleware  # type: ignore[method-assign] # as above
    return metrics_operations(options, telemetry, collector, middleware.catch_up)


def _add_errors(app: Flask) -> None:
    @app.errorhandler(PharosError)
    def pharos_error(error: PharosError) -> Response:
        told = told_error(error)
        exchange_of(request.environ).fail(told)
        return flask_response(error_reply(told))

    @app.errorhandler(ClientGoneError)
    def client_gone(_: ClientGoneError) -> Response:
        return Response(status=_CLIENT_CLOSED_REQUEST)

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        told = _from_werkzeug(error)
        exchange_of(request.environ).fail(told)
        response = flask_response(error_reply(told))
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            response.headers["Allow"] = ", ".join(sorted(error.valid_methods))
        return response

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        name = exchange_of(request.environ).request_id
        _log.exception("request %s failed in the server", name)
        told = told_error(error)
        exchange_of(request.environ).fail(told)
        return flask_response(error_reply(told))


def _from_werkzeug(error: HTTPException) -> PharosError:
    if isinstance(error, NotFound):
        message = f"There is no route {shown(request.path)}. See /openapi.json for those there are."
        return RouteNotFoundError(message)
    if isinstance(error, MethodNotAllowed):
        message = (
            f"The route {shown(request.path)} does not take {shown(request.method)}. "
            "The header 'Allow' lists what it takes."
        )
        return MethodNotAllowedError(message)
    return told_error(error)


def _begin() -> Response | None:
    """Note the route; answer a browser's question whether a page may send something to it."""
    exchange_of(request.environ).route = request.url_rule.rule if request.url_rule else ""
    return preflight() if is_preflight(request.environ) else None
