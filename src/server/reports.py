"""The routes about the API itself: its models, and its description."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from flask import Response

from .generate import check_served
from .json_text import encode_json
from .openapi import build_document

if TYPE_CHECKING:
    from flask import Flask

    from .options import ServerOptions

__all__ = ["add_report_routes"]


def add_report_routes(app: Flask, options: ServerOptions, *, started_at: int) -> None:
    """Add the routes to ``app``.

    Args:
        app: The application.
        options: Fixed for its life.
        started_at: Seconds since 1970.
    """
    reports = _Reports(options, started_at)
    app.add_url_rule("/v1/models", "models", reports.models)
    app.add_url_rule("/v1/models/<path:model>", "model", reports.model)
    app.add_url_rule("/openapi.json", "openapi", reports.openapi)


class _Reports:
    """Answers from what is fixed."""

    def __init__(self, options: ServerOptions, started_at: int) -> None:
        self._options = options
        self._started_at = started_at
        self._document = functools.cache(lambda: encode_json(build_document(options)))

    def models(self) -> Response:
        """``GET /v1/models``."""
        names = self._options.served_model_names
        return _json({"object": "list", "data": [self._model(name) for name in names]})

    def model(self, model: str) -> Response:
        """``GET /v1/models/{id}``; an id may contain slashes."""
        check_served(model, self._options)
        return _json(self._model(model))

    def openapi(self) -> Response:
        """``GET /openapi.json``; built at the first request."""
        return Response(self._document(), content_type="application/json")

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started_at, "owned_by": "pharos"}


def _json(value: object) -> Response:
    return Response(encode_json(value), content_type="application/json")
