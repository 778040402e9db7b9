"""What is asked of every request before the application, and what every answer carries.

The gate goes by a request's head alone, and makes nothing of its body: a flood
of requests that it refuses costs a third of what it would inside of Flask.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from werkzeug.exceptions import HTTPException

from ..resilience.errors import RouteNotFoundError
from ..telemetry.http import exchange_of
from ..telemetry.record import GenerationDraft
from .auth import check_api_key
from .caller import caller_of
from .cors import cors_headers, is_preflight
from .error_answer import error_reply
from .families import ChatFamily, CompletionFamily
from .foreign_errors import told_error
from .hosts import Hosts, hosts_and_origins
from .operation import METRICS_PATHS, OPERATION_PATHS, is_operation
from .request_id import choose_request_id

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from flask import Flask

    from ..resilience.errors import PharosError
    from .admittance import Admittance
    from .caller import Caller
    from .operation import Operations
    from .options import ServerOptions
    from .reply import Reply

__all__ = ["GENERATION_PATHS", "REFUSAL", "Gate", "operations"]

GENERATION_PATHS: Final = {
    "/v1/chat/completions": ChatFamily.operation,
    "/v1/completions": CompletionFamily.operation,
}
"""What is generated where."""
REFUSAL: Final = "pharos.refusal"
"""Where a request's environment has the error that its parser found."""
_OPERATIONS: Final = "pharos.operations"
_log = logging.getLogger(__name__)


def operations(application: WSGIApplication) -> WSGIApplication:
    """Return the application as the listener for operations has it: without the API."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> object:
        environ[_OPERATIONS] = True
        return application(environ, start_response)

    return answer  # type: ignore[return-value] # an iterable, as the application returns it


class Gate:
    """WSGI middleware around ``app``. One object, called by many threads.

    Judged in this order: what the parser found, host, origin, key, rate, whether there is a place. A
    browser's question whether a page may send something has no key, and goes on to the application.
    What is refused in any case is judged in the I/O thread, so no judge may wait for anything.
    """

    def __init__(
        self,
        app: Flask,
        options: ServerOptions,
        admittance: Admittance,
        operations: Operations,
    ) -> None:
        """Stand before ``app``, and answer ``operations`` in its place; more may be added later."""
        self._operations = operations
        self._application = app.wsgi_app
        self._routes = app.url_map
        self._model = options.model_name
        self._keys = options.api_keys
        self._hosts, self._origins = hosts_and_origins(options)
        self._operation_hosts = Hosts(options.operations_host, options.allowed_hosts)
        self._admittance = admittance

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Have a request answered, or refuse it."""
        caller = caller_of(environ)
        exchange = exchange_of(environ)
        exchange.request_id = choose_request_id(environ.get("HTTP_X_REQUEST_ID", ""))

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:  # noqa: ANN401 - WSGI's
            caller.end_reservation()  # a request that is answered has its place, or wants none
            own = [
                ("X-Request-Id", exchange.request_id),
                *cors_headers(environ.get("HTTP_ORIGIN"), self._origins),
                *self._admittance.headers(caller),
            ]
            return start_response(status, headers + own, exc_info)

        try:
            self._judge(environ, caller)
            reply = self._operate(environ)
        except Exception as error:  # noqa: BLE001 - the border of the request, which tells its client
            told = told_error(error)
            if told is not error:
                _log.exception("request %s failed at the gate", exchange.request_id)
            return self._refuse(environ, told, start)
        if reply is None:
            return self._application(environ, start)
        return _tell(environ, reply, start)

    def _operate(self, environ: WSGIEnvironment) -> Reply | None:
        """Answer an operation; None where it is none, or asked for in another way than by GET."""
        path = environ.get("PATH_INFO", "")
        operation = self._operations.get(path)
        if operation is None or not is_operation(environ.get("REQUEST_METHOD", ""), path):
            return None
        exchange_of(environ).route = path
        return operation(environ)

    def _judge(self, environ: WSGIEnvironment, caller: Caller) -> None:
        """Raise what is wrong with a request."""
        if REFUSAL in environ:
            raise environ[REFUSAL]
        path, host = _path(environ), environ.get("HTTP_HOST")
        if _OPERATIONS in environ:
            self._operation_hosts.check(host)
            if path not in OPERATION_PATHS:
                message = "This address has the routes for operations alone."
                raise RouteNotFoundError(message)
        else:
            self._hosts.check(host)
        self._origins.check(environ.get("HTTP_ORIGIN"), host)
        if is_preflight(environ):
            return
        if path.startswith("/v1/") and path not in METRICS_PATHS:
            caller.tenant = check_api_key(environ.get("HTTP_AUTHORIZATION", ""), self._keys)
        if path in GENERATION_PATHS and environ["REQUEST_METHOD"] == "POST":
            self._admit(environ, path, caller)

    def _admit(self, environ: WSGIEnvironment, path: str, caller: Caller) -> None:
        try:
            self._admittance.admit(caller)
        except Exception as error:
            # A generation that was refused, as the figures have it.
            draft = GenerationDraft(operation=GENERATION_PATHS[path], model=self._model)
            draft.fail(told_error(error))
            exchange_of(environ).generation = draft
            raise

    def _refuse(
        self, environ: WSGIEnvironment, error: PharosError, start: StartResponse
    ) -> list[bytes]:
        exchange = exchange_of(environ)
        exchange.route = self._route(environ)
        exchange.fail(error)
        return _tell(environ, error_reply(error), start)

    def _route(self, environ: WSGIEnvironment) -> str:
        """Return the rule that a request's path matches; empty where none does."""
        if _path(environ) in GENERATION_PATHS and environ.get("REQUEST_METHOD") == "POST":
            return _path(environ)
        try:
            adapter = self._routes.bind_to_environ(environ)
            rule, _ = adapter.match(return_rule=True)
        except HTTPException:
            return ""
        return rule.rule


def _path(environ: WSGIEnvironment) -> str:
    """Return a request's path as werkzeug finds its route, which takes many slashes for the first."""
    return "/" + str(environ.get("PATH_INFO", "")).lstrip("/")


def _tell(environ: WSGIEnvironment, reply: Reply, start: StartResponse) -> list[bytes]:
    status = HTTPStatus(reply.status)
    headers = [
        ("Content-Type", reply.content_type),
        ("Content-Length", str(len(reply.body))),
        *reply.headers,
    ]
    start(f"{status.value} {status.phrase.upper()}", headers)
    return [] if environ.get("REQUEST_METHOD") == "HEAD" else [reply.body]
