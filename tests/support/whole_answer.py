"""One request that is answered in whole, without a server: what telemetry costs is added to it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from mlx_pharos.telemetry.http import exchange_of
from mlx_pharos.telemetry.record import EngineReport, GenerationDraft

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["answer", "ask"]

_TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Answer as a route does that has generated eleven tokens."""
    exchange = exchange_of(environ)
    exchange.route, exchange.request_id = "/v1/chat/completions", "req_1"
    now = time.monotonic()
    exchange.generation = GenerationDraft(
        operation="chat",
        model="tiny",
        request_model="tiny",
        stream=True,
        choices=1,
        max_tokens=100,
        temperature=0.7,
        top_p=1.0,
        report=lambda: EngineReport(
            endings=("stop",),
            prompt_tokens=30,
            cached_tokens=20,
            completion_tokens=11,
            accepted_at=now,
            prefill_at=now + 0.01,
            first_token_at=now + 0.02,
            finished_at=now + 0.3,
            decode_seconds=0.28,
            decode_intervals=10,
        ),
    )
    start_response("200 OK", [])
    return [b"x"]


def ask(application: Callable[..., Any], traceparent: str = _TRACE) -> None:
    """Send one request with the caller's trace, or with none where it is empty; take the answer."""
    environ = {"REQUEST_METHOD": "POST", "wsgi.url_scheme": "http"}
    if traceparent:
        environ["HTTP_TRACEPARENT"] = traceparent
    body = application(environ, _started)
    for _ in body:
        pass
    close = getattr(body, "close", None)
    if close is not None:
        close()


def _started(*_: Any) -> Any:
    """Take the status, as a server does."""
