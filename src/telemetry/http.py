"""The WSGI middleware: a request begins when it arrives and ends with its last byte.

The end is the ``close()`` of the iterable that the server pulls: it comes after
the last byte was written, and also when the client left, so a stream of a
minute is a request of a minute.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

from . import attributes as a
from .correlation import CURRENT, NO_TRACE
from .record import RequestRecord
from .request_span import BegunSpan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ..resilience.errors import PharosError
    from .correlation import TraceIds
    from .record import GenerationDraft
    from .recorder import Recorder
    from .spans import SpanWriter

__all__ = ["AFTERWARDS", "STARTED_AT", "Exchange", "TelemetryMiddleware", "exchange_of"]

_log = logging.getLogger(__name__)

STARTED_AT = "pharos.started_at"
"""Where a request's environment says when it began, if that was before the application has it."""
AFTERWARDS = "pharos.afterwards"
"""Where it has what calls a function a little later, where the request shall be recorded then; left out
where that does not matter. Its time ends before that in any case."""
_KEY = "pharos.exchange"
_CLIENT_CLOSED_REQUEST = 499
_NO_SPAN = BegunSpan("", trace.INVALID_SPAN_CONTEXT)


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One HTTP request while it runs. Belongs to the thread that answers it.

    The middleware makes it; the application fills in what only it knows.
    """

    method: str
    started_at: float
    span: BegunSpan = _NO_SPAN
    trace_ids: TraceIds = NO_TRACE
    request_id: str = ""
    route: str = ""
    """The rule that matched; empty while none has."""
    status: int = 0
    error_code: str = ""
    failed: bool = False
    generation: GenerationDraft | None = None

    def fail(self, error: PharosError) -> None:
        """Note the error that the client is told."""
        self.error_code = error.code or error.type
        self.failed = error.status >= 500  # noqa: PLR2004 - HTTP

    def record(self, *, ended_at: float, written: bool) -> RequestRecord:
        """Return what is known of the request at its end.

        Args:
            ended_at: When that was.
            written: Whether the application's answer was pulled to its end.
        """
        generation = self.generation.record() if self.generation else None
        left = not written or self.status == _CLIENT_CLOSED_REQUEST
        return RequestRecord(
            request_id=self.request_id,
            method=self.method,
            route=self.route,
            status=self.status or _CLIENT_CLOSED_REQUEST,
            started_at=self.started_at,
            ended_at=ended_at,
            client_left=left or (generation is not None and self.generation_left),
            error_code=self.error_code or (generation.error_code if generation else ""),
            failed=self.failed or (generation is not None and generation.failed),
            generation=generation,
        )

    @property
    def generation_left(self) -> bool:
        """Whether a stream noticed that its client had left."""
        return self.generation is not None and self.generation.left


def exchange_of(environ: WSGIEnvironment) -> Exchange:
    """Return the exchange that a request belongs to; one that nobody records without middleware."""
    found: Exchange | None = environ.get(_KEY)
    if found is None:
        found = environ[_KEY] = Exchange(method="", started_at=time.monotonic())
    return found


class TelemetryMiddleware:
    """Wraps the application. One object, called by many threads."""

    def __init__(
        self,
        application: WSGIApplication,
        recorder: Recorder,
        spans: SpanWriter,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._application = application
        self._recorder = recorder
        self._spans = spans
        self._clock = clock
        self._late: deque[Callable[[], None]] = deque()
        self._catching_up = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        exchange = self._begin(environ)

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:  # noqa: ANN401 - WSGI's
            exchange.status = int(status[:3])
            return start_response(status, headers, exc_info)

        token = CURRENT.set(exchange.trace_ids)
        try:
            body = self._application(environ, start)
        except BaseException:
            exchange.status, exchange.failed = 500, True
            self.finish(exchange, ended_at=self._clock(), written=True)
            raise
        finally:
            CURRENT.reset(token)
        return _Body(body, exchange, self, self._clock, environ.get(AFTERWARDS))

    def finish_later(
        self, finish: Callable[[], None], afterwards: Callable[[Callable[[], None]], None]
    ) -> None:
        """Have ``afterwards`` record a request, unless somebody wants to see it before."""
        self._late.append(finish)
        afterwards(partial(self.catch_up, 1))

    def catch_up(self, count: int = sys.maxsize) -> None:
        """Record so many of the requests that were to be recorded later. Safe from any thread.

        Whoever shows figures calls this before: who has its answer is in them.
        """
        # Once more than there are: one that another thread has taken is recorded when this has the lock.
        for _ in range(min(count, len(self._late) + 1)):
            with self._catching_up:
                if self._late:
                    self._late.popleft()()

    def finish(self, exchange: Exchange, *, ended_at: float, written: bool) -> None:
        """Record a request that has ended."""
        token = CURRENT.set(exchange.trace_ids)
        try:
            record = exchange.record(ended_at=ended_at, written=written)
            self._recorder.finish(record, exchange.span.context, exchange.trace_ids)
            self._spans.finish(exchange.span, record)
        except Exception:  # noqa: BLE001 - the request has been answered, and must not fail now
            _log.exception("a request could not be recorded")
        finally:
            CURRENT.reset(token)

    def _begin(self, environ: WSGIEnvironment) -> Exchange:
        now: float = environ.get(STARTED_AT) or self._clock()
        method = a.HTTP_METHOD.close(environ.get("REQUEST_METHOD", ""))
        span = self._spans.begin(environ, method, now)
        ids = span.context
        exchange = Exchange(
            method=method,
            started_at=now,
            span=span,
            trace_ids=(
                (trace.format_trace_id(ids.trace_id), trace.format_span_id(ids.span_id))
                if ids.is_valid
                else NO_TRACE
            ),
        )
        environ[_KEY] = exchange
        self._recorder.begin(method)
        return exchange


class _Body:
    """The answer while it is pulled. waitress closes it in every case, in the same thread."""

    def __init__(
        self,
        body: Iterable[bytes],
        exchange: Exchange,
        middleware: TelemetryMiddleware,
        clock: Callable[[], float],
        afterwards: Callable[[Callable[[], None]], None] | None,
    ) -> None:
        self._afterwards = afterwards
        self._body = body
        self._chunks: Iterator[bytes] | None = None
        self._exchange = exchange
        self._middleware = middleware
        self._clock = clock
        self._written = False
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        token = CURRENT.set(self._exchange.trace_ids)
        try:
            if self._chunks is None:
                self._chunks = iter(self._body)
            return next(self._chunks)
        except StopIteration:
            self._written = True
            raise
        finally:
            CURRENT.reset(token)

    def close(self) -> None:
        """End the request; its time ends before what closing costs."""
        if self._closed:
            return
        self._closed = True
        ended_at = self._clock()
        token = CURRENT.set(self._exchange.trace_ids)
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            CURRENT.reset(token)
            finish = partial(
                self._middleware.finish, self._exchange, ended_at=ended_at, written=self._written
            )
            if self._afterwards is None:
                finish()
            else:
                self._middleware.finish_later(finish, self._afterwards)
