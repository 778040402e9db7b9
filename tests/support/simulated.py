"""Requests without a server: whatever ends a request, through the real middleware and recorder."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from mlx_pharos.resilience.errors import (
    EngineDiedError,
    ModelNotFoundError,
    PharosError,
    QueueFullError,
)
from mlx_pharos.telemetry.collector import MetricsCollector
from mlx_pharos.telemetry.http import TelemetryMiddleware, exchange_of
from mlx_pharos.telemetry.record import EngineReport, GenerationDraft
from mlx_pharos.telemetry.recorder import Recorder
from mlx_pharos.telemetry.spans import SpanWriter

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlx_pharos.telemetry.telemetry import Telemetry
    from support.clock import SimulatedClock

__all__ = ["SimulatedRequests"]

_MODEL = "tiny"
_ENDS = ("stop",) * 12 + ("length",) * 4 + ("left", "refused", "died", "bad")


class SimulatedRequests:
    """Makes requests one after the other, drawn from a seed. Used by one thread."""

    def __init__(self, telemetry: Telemetry, clock: SimulatedClock, *, seed: int = 1) -> None:
        """Record to ``telemetry``, whose window has to run on ``clock``."""
        self._clock = clock
        self._draw = random.Random(seed)
        self.collector = MetricsCollector(telemetry.instruments, telemetry.window)
        recorder = Recorder(telemetry.instruments, self.collector, models={_MODEL})
        spans = SpanWriter(telemetry.tracer)
        self.middleware = TelemetryMiddleware(self.answer, recorder, spans, clock=clock)
        self.count = 0

    def run(self, count: int) -> None:
        """Make so many."""
        for _ in range(count):
            self.one()

    def one(self) -> None:
        """Make one of any kind: with an invented model, method or path as often as not."""
        draw = self._draw
        self.count += 1
        end = draw.choice(_ENDS)
        environ = {
            "REQUEST_METHOD": draw.choice(("POST", "POST", f"INVENTED{draw.random()}")),
            "PATH_INFO": f"/invented/{draw.random()}",
            "wsgi.url_scheme": "http",
            "HTTP_X_REQUEST_ID": f"invented-{draw.random()}",
            "HTTP_USER_AGENT": f"invented/{draw.random()}",
            "HTTP_HOST": f"invented{draw.random()}.example",
            "simulated.end": end,
        }
        if draw.random() < 0.5:
            environ["HTTP_TRACEPARENT"] = (
                f"00-{draw.getrandbits(128) | 1:032x}-{draw.getrandbits(64) | 1:016x}-01"
            )
        body: Any = self.middleware(environ, _started)
        for taken, _ in enumerate(body):
            if end == "left" and taken == 1:
                break
        self._clock.now += draw.random() * 0.1
        body.close()

    def answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer as the application does, without an engine."""
        draw = self._draw
        exchange = exchange_of(environ)
        exchange.request_id = f"req_{self.count}"
        exchange.route = draw.choice(("/v1/chat/completions", "/v1/completions", ""))
        end = environ["simulated.end"]
        begin = self._clock.now
        self._clock.now += draw.lognormvariate(-2, 1)
        draft = exchange.generation = GenerationDraft(
            operation="chat" if draw.random() < 0.8 else "text_completion",
            model=_MODEL,
            request_model=draw.choice((_MODEL, f"invented-{draw.random()}")),
            stream=True,
            choices=1,
            max_tokens=256,
            temperature=draw.random(),
            top_p=0.9,
        )
        failure = _FAILURES.get(end)
        if failure is not None:
            exchange.fail(failure)
            draft.fail(failure)
        if failure is None or end == "died":
            draft.report = lambda: _report(draw, end, begin, self._clock.now)
        status = failure.status if failure is not None and end != "died" else 200
        start_response(f"{status} X", [])
        return iter([b"x"] * 4)


_FAILURES: dict[str, PharosError] = {
    "refused": QueueFullError("full"),
    "died": EngineDiedError("died"),
    "bad": ModelNotFoundError("unknown"),
}


def _report(draw: random.Random, end: str, begin: float, now: float) -> EngineReport:
    prompt = draw.randrange(1, 4000)
    tokens = draw.randrange(2, 400)
    first = begin + (now - begin) * 0.5
    return EngineReport(
        endings=() if end == "died" else ("cancelled",) if end == "left" else (end,),
        prompt_tokens=prompt,
        cached_tokens=draw.randrange(prompt),
        completion_tokens=tokens,
        accepted_at=begin,
        prefill_at=begin + (now - begin) * 0.1,
        first_token_at=first,
        finished_at=0.0 if end == "died" else now,
        decode_seconds=now - first,
        decode_intervals=tokens - 1,
    )


def _started(*_: Any) -> Any:
    """Take the status, as a server does."""
