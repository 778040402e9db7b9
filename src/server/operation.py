"""A route for operations: a probe or figures, answered at once and without Flask.

Who probes and polls does so again and again, also while the server is busy, and Flask's way to a view
takes as long as such an answer itself. Flask has their rules all the same: it answers for all methods
but GET and HEAD, and paths with a slash at their end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flask import request

from .reply import Reply, flask_response

if TYPE_CHECKING:
    from flask import Flask, Response

__all__ = [
    "METRICS_PATHS",
    "OPERATION_PATHS",
    "Operation",
    "Operations",
    "add_rules",
    "is_operation",
]

METRICS_PATHS = frozenset({"/metrics", "/v1/metrics"})
"""They have a key of their own."""
OPERATION_PATHS = METRICS_PATHS | {"/livez", "/readyz", "/health"}
"""All that the second listener answers, from figures that are there."""
_METHODS = frozenset({"GET", "HEAD"})


Operation = Callable[[dict[str, Any]], Reply]
"""Takes the WSGI environment of a GET; may raise a :class:`PharosError`. It waits for nothing."""
Operations = dict[str, Operation]
"""By path."""


def is_operation(method: str, path: str) -> bool:
    """Whether a request is one of these, by its method as it was sent and its path."""
    return path in OPERATION_PATHS and method in _METHODS


def add_rules(app: Flask, operations: Operations) -> None:
    """Let Flask know the routes."""
    for path, operation in operations.items():
        app.add_url_rule(
            path,
            path.removeprefix("/").replace("/", "_"),
            _view(operation),
            methods=["GET"],
            provide_automatic_options=path not in METRICS_PATHS,
        )


def _view(operation: Operation) -> Callable[[], Response]:
    return lambda: flask_response(operation(request.environ))
