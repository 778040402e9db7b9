"""How many threads, connections and files a server needs for what it admits.

The settings check with these numbers, the doctor tells them, and the server
uses them.
"""

from __future__ import annotations

__all__ = ["OTHER_FILES", "connection_count", "thread_count"]

_SPARE_THREADS = 8
"""Threads beyond those that admitted requests can hold: refusals, health checks, model lists."""
_SPARE_CONNECTIONS = 128
"""Connections beyond the threads: idle keep-alive ones, and some that are being refused."""
OTHER_FILES = 128
"""Files that are no connections: the engine's pipe, logs, temporary files of large bodies."""


def thread_count(threads: int, *, max_batch: int, max_queue: int) -> int:
    """Return how many threads answer requests; ``threads`` is the setting, 0 for enough."""
    return threads or max_batch + max_queue + _SPARE_THREADS


def connection_count(connection_limit: int, *, threads: int) -> int:
    """Return how many connections may be open, with this many threads; 0 is for enough."""
    return connection_limit or threads + _SPARE_CONNECTIONS
