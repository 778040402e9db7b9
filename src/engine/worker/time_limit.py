"""A bound on how long Python code in this thread may run: for templates, which are a model's code.

Jinja's sandbox keeps a template from the machine, but not from counting for ever. The limit raises
in the thread from outside, between two of the interpreter's steps. What runs in C without coming
back, such as one huge multiplication of a string, it cannot reach: that ends with the memory, and
the engine's supervisor deals with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TimeLimitError", "prepare_thread", "run_within"]

Result = TypeVar("Result")

_AGAIN_SECONDS = 5.0
"""A library may swallow the error; then it comes again. Far longer than :meth:`_Watch.leave` takes,
which could be interrupted once, but never twice."""
_PATIENCE_SECONDS = 0.05
"""Between two looks whether the watching thread has ended; its last step wakes who waits."""


class TimeLimitError(Exception):
    """The code has run for longer than it may."""


def run_within(seconds: float, work: Callable[[], Result]) -> Result:
    """Return what the work returns, if it ends in time.

    Raises:
        TimeLimitError: The time is over. Raised in the work or never: once this function has been
            left, nothing comes after.
    """
    watch = _watch_of_this_thread()
    try:
        try:
            watch.begin(seconds)
            return work()
        finally:
            watch.leave()
    except TimeLimitError:
        watch.leave()  # the error may have come in the midst of the first one
        raise


def prepare_thread() -> None:
    """Make what watches the calling thread, which is then kept for it.

    For threads that must go on where memory is at its end: a thread that is made there may die
    before it begins, and whoever started it would wait for ever (CPython 3.11).
    """
    _watch_of_this_thread()


def _watch_of_this_thread() -> _Watch:
    try:
        found: _Watch = _local.watch
    except AttributeError:
        found = _local.watch = _Watch()
    return found


class _Watch:
    """A thread that raises in the one that made it, run after run.

    The error can come between any two steps of the maker, so what :meth:`leave` does is single
    steps that may be done twice, and nothing else waits for the locks that it takes.
    """

    def __init__(self) -> None:
        self._target = ctypes.c_ulong(threading.get_ident())
        self._seconds = 0.0
        self._left = False
        self._raised = False
        self._running = False
        self._go = _locked()
        """Released when a run begins."""
        self._wake = _locked()
        """Released when a run was left."""
        self._ended = _locked()
        """Released when nothing more is raised in a run."""
        threading.Thread(target=self._watch, name="time-limit", daemon=True).start()

    def begin(self, seconds: float) -> None:
        """Begin to watch a run. The last one has been left, so no error is on its way."""
        self._wake.acquire(blocking=False)
        self._ended.acquire(blocking=False)
        self._seconds, self._left, self._raised = seconds, False, False
        self._running = True
        self._go.release()

    def leave(self) -> None:
        """Return when nothing can be raised any more, and nothing is about to be."""
        self._left = True
        with contextlib.suppress(RuntimeError):  # it was released by an interrupted call
            self._wake.release()
        while self._running:
            self._ended.acquire(timeout=_PATIENCE_SECONDS)
        if self._raised:
            # One more, for the last time: the interpreter notices it within the next steps, whether
            # or not one was still on its way, and then no longer looks for any at each of them.
            # Taking one back would let it look for ever, and hang under a profiler (CPython 3.11).
            with contextlib.suppress(TimeLimitError):
                _raise_in(self._target)
                while True:
                    time.sleep(0)

    def _watch(self) -> None:
        while True:
            self._go.acquire()
            wait = self._seconds
            while not self._wake.acquire(timeout=wait) and not self._left:
                self._raised = True
                _raise_in(self._target)
                wait = _AGAIN_SECONDS
            self._running = False
            with contextlib.suppress(RuntimeError):  # nobody had to wait for it the last time
                self._ended.release()


_local = threading.local()


def _locked() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


def _raise_in(thread: ctypes.c_ulong) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(TimeLimitError))
