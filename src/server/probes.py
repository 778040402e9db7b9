"""The probes: ``/livez``, ``/readyz`` and ``/health``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ..engine.client import EngineState
from .json_text import encode_json
from .reply import Reply

if TYPE_CHECKING:
    from ..engine.client import EngineClient, EngineSnapshot
    from ..engine.protocol import Loaded
    from .operation import Operations
    from .options import ServerOptions
    from .shutdown import Shutdown

__all__ = ["probe_operations"]

Readiness = Literal["ready", "loading", "down", "draining"]


def probe_operations(
    options: ServerOptions, engine: EngineClient, shutdown: Shutdown
) -> Operations:
    """Return the routes.

    Args:
        options: Fixed for the server's life.
        engine: Asked for its state at each request.
        shutdown: Whether the server drains.
    """
    probes = _Probes(options, engine, shutdown)
    return {"/livez": probes.livez, "/readyz": probes.readyz, "/health": probes.health}


class _Probes:
    """Answers from what is known at the moment; never waits for the engine."""

    def __init__(self, options: ServerOptions, engine: EngineClient, shutdown: Shutdown) -> None:
        self._options = options
        self._engine = engine
        self._shutdown = shutdown

    def livez(self, _: dict[str, Any]) -> Reply:
        """``GET /livez``: the process answers, whatever the engine does."""
        return _json({"status": "ok"})

    def readyz(self, _: dict[str, Any]) -> Reply:
        """``GET /readyz``: is the engine up, and does the server not drain?

        Load does not count. While the queue is full or memory is short, requests are refused one
        by one, each with a ``Retry-After``; a probe that followed the load would take a busy
        server out, and give its share to others that are busy too.
        """
        status, reason = self._readiness()
        if status == "ready":
            return _json({"status": status, "reason": reason})
        return _json({"status": status, "reason": reason})._replace(
            status=503, headers=(("Retry-After", "1"),)
        )

    def health(self, _: dict[str, Any]) -> Reply:
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


def _json(value: object) -> Reply:
    return Reply(encode_json(value))
