"""The routes about the server itself: models, probes, health, the API's description."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Literal

from flask import Response

from ..engine.client import EngineState
from .generate import check_served
from .json_text import encode_json
from .openapi import build_document

if TYPE_CHECKING:
    from flask import Flask

    from ..engine.client import EngineClient, EngineSnapshot
    from ..engine.protocol import Loaded
    from .options import ServerOptions
    from .shutdown import Shutdown

__all__ = ["add_report_routes"]

Readiness = Literal["ready", "loading", "down", "draining"]


def add_report_routes(
    app: Flask, options: ServerOptions, engine: EngineClient, shutdown: Shutdown, *, started_at: int
) -> None:
    """Add the routes to ``app``.

    Args:
        app: The application.
        options: Fixed for its life.
        engine: Asked for its state at each request.
        shutdown: Whether the server drains.
        started_at: Seconds since 1970.
    """
    reports = _Reports(options, engine, shutdown, started_at)
    app.add_url_rule("/v1/models", "models", reports.models)
    app.add_url_rule("/v1/models/<path:model>", "model", reports.model)
    app.add_url_rule("/livez", "livez", reports.livez)
    app.add_url_rule("/readyz", "readyz", reports.readyz)
    app.add_url_rule("/health", "health", reports.health)
    app.add_url_rule("/openapi.json", "openapi", reports.openapi)


class _Reports:
    """Answers from what is known at the moment; never waits for the engine."""

    def __init__(
        self, options: ServerOptions, engine: EngineClient, shutdown: Shutdown, started_at: int
    ) -> None:
        self._options = options
        self._engine = engine
        self._shutdown = shutdown
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

    def livez(self) -> Response:
        """``GET /livez``: the process answers, whatever the engine does."""
        return _json({"status": "ok"})

    def readyz(self) -> Response:
        """``GET /readyz``: is the engine up, and does the server not drain?

        Load does not count. While the queue is full or memory is short, requests are refused one
        by one, each with a ``Retry-After``; a probe that followed the load would take a busy
        server out, and give its share to others that are busy too.
        """
        status, reason = self._readiness()
        if status == "ready":
            return _json({"status": status, "reason": reason})
        response = _json({"status": status, "reason": reason}, status=503)
        response.headers["Retry-After"] = "1"
        return response

    def health(self) -> Response:
        """``GET /health``: always 200, the status is in the body."""
        status, reason = self._readiness()
        engine, loaded = self._engine, self._engine.loaded
        up = engine.state is EngineState.READY
        snapshot = engine.snapshot()
        return _json(
            {
                "status": "ok" if status == "ready" else status,
                "reason": reason,
                "model": self._options.model_name,
                "model_loaded": up,
                "device": loaded.device if loaded and up else None,
                "context_length": loaded.context_length if loaded and up else None,
                "running": snapshot.running,
                "waiting": snapshot.waiting,
                "engine": {"restarts": engine.restarts, "last_reason": engine.last_ending},
                "memory": _memory(snapshot, loaded),
                "cache": _cache(snapshot),
            }
        )

    def openapi(self) -> Response:
        """``GET /openapi.json``; built at the first request."""
        return Response(self._document(), content_type="application/json")

    def _readiness(self) -> tuple[Readiness, str]:
        if self._shutdown.draining:
            return "draining", "The server is shutting down."
        match self._engine.state:
            case EngineState.READY:
                return "ready", ""
            case EngineState.LOADING:
                if self._engine.restarts:
                    return "loading", "The engine ended and is started again."
                return "loading", "The model is still loading."
            case _:
                # Why it went down is for the log: it may name files of this machine.
                return "down", "The engine is down."

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started_at, "owned_by": "pharos"}


def _cache(snapshot: EngineSnapshot) -> dict[str, Any]:
    health = snapshot.figures.prompt_cache_health
    return {
        "entries": snapshot.prompt_cache_entries,
        "bytes": snapshot.prompt_cache_bytes,
        "limit_bytes": snapshot.prompt_cache_limit_bytes,
        "hits": snapshot.prompt_cache_hits,
        "misses": snapshot.prompt_cache_misses,
        "bypasses": snapshot.figures.prompt_cache_bypasses,
        "breaker": health.breaker,
        "errors": sum(health.errors),
        "corruptions": sum(health.corruptions),
    }


def _memory(snapshot: EngineSnapshot, loaded: Loaded | None) -> dict[str, int]:
    figures = snapshot.figures
    return {
        "weights_bytes": loaded.weights_bytes if loaded else 0,
        "limit_bytes": loaded.ledger_limit_bytes if loaded else 0,
        "reserved_bytes": figures.ledger_reserved_bytes,
        "held_bytes": figures.mlx_active_bytes + figures.mlx_cache_bytes,
        "largest_request_tokens": loaded.largest_tokens if loaded else 0,
        "preemptions": figures.preemptions,
    }


def _json(value: object, status: int = 200) -> Response:
    return Response(encode_json(value), status=status, content_type="application/json")
