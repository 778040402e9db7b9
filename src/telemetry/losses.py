"""What did not reach the collector: counted always, said at most once a minute and at the end."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from .attributes import DROP_REASON, SIGNAL
from .lockless import LocklessHandler
from .printable import printable
from .reading import Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Losses", "ThrottledLog"]

_log = logging.getLogger(__name__)
_SILENCE_SECONDS = 60.0
_LONGEST_MESSAGE = 300
_GIVEN_UP = "due to timeout, max retries or shutdown"
"""What an exporter says after it has said why."""
_QUOTING = (
    "opentelemetry.trace",
    "opentelemetry.baggage",
    "opentelemetry.propagat",
    "opentelemetry.util.re",
)
"""Packages whose warnings quote headers: those of clients, or of exporters, with their keys."""
_POSSIBLE = (
    *((signal, reason) for signal in ("traces", "logs") for reason in DROP_REASON.values),
    *(("metrics", reason) for reason in ("export_failed", "rejected", "shutdown")),
)


class Losses:
    """Counts what was dropped, by signal and reason. Safe from any thread."""

    def __init__(self, log: ThrottledLog) -> None:
        self._lock = threading.Lock()
        # Zeros from the start: an alert on a rate sees the first loss too.
        self._counts = dict.fromkeys(_POSSIBLE, 0)
        self._before_shutdown: dict[tuple[str, str], int] | None = None
        """The counts when the shutdown began; None before it."""
        self._told = dict(self._counts)
        """The counts when a line told of them last."""
        self._words = ""
        """The collector's, for the next line."""
        self._uncounted = False
        self._log = log

    def add(self, signal: str, reason: str, count: int, words: str = "") -> None:
        """Count items of a signal that are lost for good, and say so if it is time.

        Args:
            signal: Of :data:`.attributes.SIGNAL`.
            reason: Of :data:`.attributes.DROP_REASON`.
            count: Less than 1 is nothing.
            words: What the collector says about it, for the log.
        """
        if count <= 0:
            return
        with self._lock:
            self._counts[signal, reason] += count
            self._words = words or self._words
            if self._before_shutdown is not None:
                return
        self._log.say(self._news)

    def lose_uncounted(self) -> None:
        """Take note that the shutdown lost something that nobody could count."""
        self._uncounted = True

    def begin_shutdown(self) -> None:
        """From now on count alone: :meth:`tell_shutdown` says all of it in one line."""
        with self._lock:
            self._before_shutdown = dict(self._counts)

    def tell_shutdown(self, *, complete: bool) -> None:
        """Say what the shutdown lost, if it lost anything, however short ago the last line was.

        Args:
            complete: Whether all is counted; if not, the line says that it may be more.
        """
        with self._lock:
            lost = self._since(self._before_shutdown or {})
        if self._uncounted or not complete:
            lost.append("more that was not sent in time")
        if lost:
            begin = "telemetry did not reach the collector before the end: " + ", ".join(lost)
            self._log.say(lambda cause: self._line(begin, cause), last=True)

    def count(self, signal: str, reason: str = "") -> int:
        """Return how many items of a signal were lost, for one reason or for all."""
        with self._lock:
            return sum(
                count
                for (of, because), count in self._counts.items()
                if of == signal and reason in {"", because}
            )

    def readings(self) -> list[Reading]:
        """Return the counts for ``pharos.telemetry.dropped``."""
        with self._lock:
            return [
                Reading(count, {SIGNAL.name: signal, DROP_REASON.name: reason})
                for (signal, reason), count in self._counts.items()
            ]

    def _news(self, cause: str) -> str:
        """Return the line for all signals' losses since the last one."""
        with self._lock:
            lost, before = self._since(self._told), self._told
            self._told = dict(self._counts)
        failed = any(
            count > before[signal, reason]
            for (signal, reason), count in self._told.items()
            if reason == "export_failed"
        )
        begin = "telemetry does not reach the collector: lost " + ", ".join(lost)
        # What an exporter said before is no reason for what the collector rejected since.
        return self._line(begin, cause if failed else "")

    def _since(self, before: Mapping[tuple[str, str], int]) -> list[str]:
        """Say what was lost since, by signal and reason. The lock is held."""
        return [
            f"{signal} {new} ({reason})"
            for (signal, reason), count in self._counts.items()
            if (new := count - before.get((signal, reason), 0))
        ]

    def _line(self, begin: str, cause: str) -> str:
        with self._lock:
            words, self._words = self._words, ""
            total = sum(self._counts.values())
        return (
            f"{begin}; {total} items since the start"
            + (f"; it says: {words}" if words else "")
            + (f"; the last failure: {cause}" if cause else "")
        )


class ThrottledLog(LocklessHandler):
    """Takes all that OpenTelemetry's packages log, and lets one line a minute through.

    An exporter without a collector logs several lines per attempt, and each of
    three exporters does. What the packages say of headers quotes them, so
    clients could write to the log: it is left out. No line waits for another kind's.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._guard = threading.Lock()
        self._clock = clock
        self._said_at = {"loss": float("-inf"), "other": float("-inf")}
        """By kind of line: what else there is to say must not keep a loss from being told."""
        self._held_back = dict.fromkeys(self._said_at, 0)
        self._cause = ""
        """Of the last failure that an exporter told of."""
        self._source = logging.getLogger("opentelemetry")

    def open(self) -> None:
        """Begin to take the packages' lines."""
        self._source.addHandler(self)
        self._source.propagate = False

    def close(self) -> None:
        """Leave the packages' lines to the root logger again."""
        if self in self._source.handlers:
            self._source.removeHandler(self)
            self._source.propagate = not self._source.handlers
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Say it, or keep what it tells for what :meth:`say` says next."""
        if record.levelno < logging.WARNING or record.name.startswith(_QUOTING):
            return
        if record.name.startswith("opentelemetry.exporter"):
            # That it has given up says less than why it tried again.
            if not (self._cause and _GIVEN_UP in str(record.msg)):
                self._cause = printable(_cause(record), _LONGEST_MESSAGE)
        else:
            self._tell("other", lambda _: printable(record.getMessage(), _LONGEST_MESSAGE))

    def say(self, text: Callable[[str], str], *, last: bool = False) -> None:
        """Log a loss unless one was told within the last minute; the last line in any case.

        Args:
            text: Called only if the line is written, with the cause of the exporters' last failure
                since the line before; empty where they told of none.
            last: Whether there will be no other.
        """
        self._tell("loss", text, last=last)

    def _tell(self, kind: str, text: Callable[[str], str], *, last: bool = False) -> None:
        cause = ""
        with self._guard:
            now = self._clock()
            if not last and now - self._said_at[kind] < _SILENCE_SECONDS:
                self._held_back[kind] += 1
                return
            held_back, self._held_back[kind] = self._held_back[kind], 0
            self._said_at[kind] = now
            if kind == "loss":
                cause, self._cause = self._cause, ""
        message = text(cause)
        if held_back:
            message += f" [{held_back} lines like this were held back]"
        _log.warning("%s", message)


def _cause(record: logging.LogRecord) -> str:
    """Return why an export failed: the first of the errors that led to each other, or the line."""
    errors = [each for each in record.args or () if isinstance(each, BaseException)]
    if not errors:
        return record.getMessage()
    error = errors[0]
    while before := error.__cause__ or error.__context__:
        error = before
    return f"{type(error).__name__}: {error}"
