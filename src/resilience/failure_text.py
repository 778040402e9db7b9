"""What a log may say of an exception: its kind, where it was, and text that is known to be safe.

The text of an exception is written by whoever raised it. It quotes what was
being worked on: a prompt, a path, a key. So it is left out, but for the kinds
whose text has a known shape. Where an exception was is told by module, function
and line, never by the file's path.
"""

from __future__ import annotations

import errno
import logging
import re
import sys
import threading
from typing import TYPE_CHECKING

from .errors import PharosError
from .sanitize import sanitize_error_message

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["SanitizedFormatter", "describe_failure", "log_uncaught"]

_MOST_FRAMES = 30
"""Of one exception, the innermost: a recursion without end has a thousand."""
_MOST_LINKS = 8
"""Of a chain of causes."""
_MLX_TEXT = re.compile(r"\[[A-Za-z][\w:.]{0,40}\] [^\n]{1,200}")
"""``[malloc] Unable to allocate 123 bytes.``: names of operations, shapes, sizes."""


def describe_failure(error: BaseException, *, with_text: bool = False) -> str:
    """Return the exception and what caused it, one line a frame, the innermost last.

    Args:
        error: As it was caught.
        with_text: Whether the texts of all exceptions are shown, sanitized: for an
            operator who asked for it, since they may quote a prompt.
    """
    links: list[str] = []
    seen: set[int] = set()
    here: BaseException | None = error
    while here is not None and id(here) not in seen and len(links) < _MOST_LINKS:
        seen.add(id(here))
        links.append(_link(here, with_text=with_text))
        here = here.__cause__ or (None if here.__suppress_context__ else here.__context__)
    return "\nwhich led to:\n".join(reversed(links))


class SanitizedFormatter(logging.Formatter):
    """Lines of the standard library's log, sanitized; exceptions as :func:`describe_failure` has them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the exception beneath it."""
        clean = logging.makeLogRecord(vars(record))
        clean.msg, clean.args = sanitize_error_message(record.getMessage()), ()
        clean.exc_text = clean.stack_info = None
        return super().format(clean)

    def formatException(self, ei: object) -> str:  # noqa: N802 - logging's name
        """Return the exception."""
        error = ei[1] if isinstance(ei, tuple) else None
        return describe_failure(error) if isinstance(error, BaseException) else ""


def log_uncaught(log: logging.Logger) -> None:
    """Let what no code has caught end in the log; Python itself would print paths and texts.

    For a process of its own, once: it replaces Python's hooks.
    """

    def in_main(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            log.critical("the process ends", exc_info=(kind, error, trace))

    def in_thread(caught: threading.ExceptHookArgs) -> None:
        error = caught.exc_value
        if error is not None and not isinstance(error, SystemExit):
            name = caught.thread.name if caught.thread else "?"
            info = (caught.exc_type, error, caught.exc_traceback)
            log.error("the thread %s ended", name, exc_info=info)

    sys.excepthook = in_main
    threading.excepthook = in_thread


def _link(error: BaseException, *, with_text: bool) -> str:
    frames = _frames(error.__traceback__)
    text = sanitize_error_message(str(error)) if with_text else _safe_text(error)
    kind = type(error)
    name = (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    return "\n".join([*frames, f"{name}: {text}" if text else name])


def _frames(trace: TracebackType | None) -> list[str]:
    frames: list[str] = []
    while trace is not None:
        code = trace.tb_frame.f_code
        module = trace.tb_frame.f_globals.get("__name__", "?")
        frames.append(f"  at {module}:{code.co_qualname}:{trace.tb_lineno}")
        trace = trace.tb_next
    if len(frames) > _MOST_FRAMES:
        frames[:-_MOST_FRAMES] = [f"  ({len(frames) - _MOST_FRAMES} frames before)"]
    return frames


def _safe_text(error: BaseException) -> str:
    """Return text of a known shape; empty for all other."""
    if isinstance(error, PharosError):
        return sanitize_error_message(error.message)
    if isinstance(error, OSError) and error.errno is not None:
        return errno.errorcode.get(error.errno, str(error.errno))
    if isinstance(error, ImportError):
        return error.name or ""
    if isinstance(error, RuntimeError | ValueError):
        found = _MLX_TEXT.fullmatch(str(error))
        return sanitize_error_message(found[0]) if found else ""
    return ""
