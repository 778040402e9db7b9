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
    from collections.abc import Callable

__all__ = ["Losses", "ThrottledLog"]

_log = logging.getLogger(__name__)
_SILENCE_SECONDS = 60.0
_LONGEST_MESSAGE = 300
_GIVEN_UP = ("due to timeout, max retries or shutdown", "Shutdown in progress", "already shutdown")
"""What an exporter says after it has said why."""
_ATTEMPT_SECONDS = 30.0
"""Between what belongs to one failure, at most: an attempt takes 3 s where nobody wants it otherwise."""
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
        self._told = dict(self._counts)
        """The counts when a line told of them last."""
        self._words = ""
        """What the collector says, for the next line that tells of what it rejected."""
        self._closing = False
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
            if self._closing:
                return
        self._log.say(
            lambda cause: self._line("telemetry does not reach the collector: lost", cause)
        )

    def lose_uncounted(self) -> None:
        """Take note that the shutdown lost something that nobody could count."""
        self._uncounted = True

    def begin_shutdown(self) -> None:
        """From now on count alone: :meth:`tell_shutdown` says all of it in one line."""
        with self._lock:
            self._closing = True

    def tell_shutdown(self, *, complete: bool) -> None:
        """Say what was lost up to the end and not told yet, however short ago the last line was.

        Args:
            complete: Whether all is counted; if not, the line says that it may be more.
        """
        more = "more that was not sent in time" if self._uncounted or not complete else ""
        with self._lock:
            lost = self._counts != self._told
        if lost or more:
            begin = "telemetry did not reach the collector before the end:"
            self._log.say(lambda cause: self._line(begin, cause, more), last=True)

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

    def _line(self, begin: str, cause: str, more: str = "") -> str:
        """Return the line for all losses since the last one, of all signals."""
        with self._lock:
            before, self._told = self._told, dict(self._counts)
            words, self._words = self._words, ""
        new = {key: count - before[key] for key, count in self._told.items() if count > before[key]}
        lost = [f"{signal} {count} ({reason})" for (signal, reason), count in new.items()]
        reasons = {reason for _, reason in new}
        line = f"{begin} {', '.join([*lost, more] if more else lost)}"
        line += f"; {sum(self._told.values())} items since the start"
        if words and "rejected" in reasons:
            line += f"; it says: {words}"
        # What an exporter said is no reason for what the collector rejected, or the queue refused.
        if cause and reasons & {"export_failed", "shutdown"}:
            line += f"; the last failure: {cause}"
        return line


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
        self._cause, self._failed_at = "", float("-inf")
        """Why an export failed last, and when that was logged (seconds since 1970)."""
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
            self._note(record)
        else:
            self._tell("other", lambda _: printable(record.getMessage(), _LONGEST_MESSAGE))

    def _note(self, record: logging.LogRecord) -> None:
        """Keep why an export failed: that it was given up says less than why it was tried again."""
        is_news = record.created - self._failed_at > _ATTEMPT_SECONDS
        if is_news or not any(each in str(record.msg) for each in _GIVEN_UP):
            self._cause = printable(_cause(record), _LONGEST_MESSAGE)
        self._failed_at = record.created

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
                cause, self._cause, self._failed_at = self._cause, "", float("-inf")
        message = text(cause)
        if held_back:
            message += f" [{held_back} lines like this were held back]"
        _log.warning("%s", message)


def _cause(record: logging.LogRecord) -> str:
    """Return an exporter's line, with the first of the errors that led to each other for the last."""
    given = record.args if isinstance(record.args, tuple) else ()
    try:
        return str(record.msg) % tuple(map(_first_error, given)) if given else record.getMessage()
    except (TypeError, ValueError):
        return record.getMessage()


def _first_error(given: object) -> object:
    if not isinstance(given, BaseException):
        return given
    while before := given.__cause__ or given.__context__:
        given = before
    return f"{type(given).__name__}: {given}"
