"""A stream of server-sent events: the WSGI iterable that waitress pulls and closes."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol

from .foreign_errors import told_error
from .json_text import DONE, KEEP_ALIVE, error_event
from .run import ClientGoneError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..telemetry.record import GenerationDraft
    from .run import Gain, Run, TokenUsage

__all__ = ["EventStream", "StreamWriter"]

_log = logging.getLogger(__name__)


class StreamWriter(Protocol):
    """How an API family writes its chunks."""

    def first(self) -> bytes:
        """Return what is sent before the first token."""

    def chunks(self, gains: Sequence[Gain]) -> bytes:
        """Return the chunks for what the choices gained."""

    def usage(self, usage: TokenUsage) -> bytes:
        """Return the chunk that carries the usage."""


class EventStream:
    """Owns the run: :meth:`close` ends it, whether or not a byte was ever pulled.

    waitress pulls and closes in one thread, and sends each piece before it
    pulls the next. Tokens that came meanwhile leave together in one piece.
    """

    def __init__(
        self,
        run: Run,
        writer: StreamWriter,
        *,
        include_usage: bool,
        keep_alive_seconds: float,
        request_id: str = "",
        draft: GenerationDraft,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._writer = writer
        self._include_usage = include_usage
        self._keep_alive = keep_alive_seconds
        self._request_id = request_id
        self._draft = draft
        self._clock = clock

    def __iter__(self) -> Iterator[bytes]:
        """Yield the stream; it always ends with ``[DONE]``, or with the client gone."""
        yield self._writer.first()
        try:
            yield from self._answer()
        except ClientGoneError:
            self._draft.left = True
        except Exception as error:  # noqa: BLE001 - the border of the request, which tells its client
            failure = told_error(error)
            if failure is not error:
                _log.exception("the stream of request %s failed", self._request_id)
            self._draft.fail(failure)
            yield error_event(failure)

    def close(self) -> None:
        """Cancel what still runs. waitress calls it at the end, however that comes."""
        self._run.close()

    def _answer(self) -> Iterator[bytes]:
        sent_at = self._clock()
        while not self._run.finished:
            data = self._writer.chunks(self._run.receive())
            if not data and self._clock() - sent_at >= self._keep_alive:
                data = KEEP_ALIVE
            if data:
                yield data
                sent_at = self._clock()
        yield self._writer.usage(self._run.usage()) + DONE if self._include_usage else DONE
