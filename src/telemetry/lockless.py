"""A handler of the log that goes without logging's lock."""

from __future__ import annotations

import logging

__all__ = ["LocklessHandler"]


class LocklessHandler(logging.Handler):
    """Emits without a lock around it, for handlers that guard what they share themselves.

    The lock would be held while a line is written or waits for a queue, by
    whichever thread logs.
    """

    def createLock(self) -> None:  # noqa: N802 - logging's name
        """Make none."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Emit a record unless a filter has it left out; return whether it was emitted.

        As :mod:`logging` does, which from Python 3.13 on takes the lock without asking whether
        there is one; and from 3.12 on a filter may put another record in its place.
        """
        found: bool | logging.LogRecord = self.filter(record)
        if found:
            self.emit(found if isinstance(found, logging.LogRecord) else record)
        return bool(found)
