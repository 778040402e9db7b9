"""The second listener, for operations: it answers however busy the first one is."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from .gate import operations
from .listener import Listener

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed.wsgi import WSGIApplication

    from .options import ServerOptions
    from .shutdown import Shutdown

__all__ = ["operations_listener"]

_THREADS = 4
"""Probes and scrapes take milliseconds."""
_CONNECTIONS = 64
_LAST_SECONDS = 5.0


@contextlib.contextmanager
def operations_listener(
    application: WSGIApplication, options: ServerOptions, shutdown: Shutdown
) -> Iterator[Listener | None]:
    """Answer operations in threads of their own until the block ends; None where nobody wants it.

    It outlives the first listener's drain, so that probes see it.

    Raises:
        ListenError: Its address is taken, not allowed, or not of this machine.
    """
    if options.operations_port is None:
        yield None
        return
    listener = Listener(
        operations(application),
        replace(
            options,
            host=options.operations_host,
            port=options.operations_port,
            threads=_THREADS,
            connection_limit=_CONNECTIONS,
        ),
        shutdown,
        on_drain=lambda: None,
    )
    loop = threading.Thread(target=listener.run, name="operations", daemon=True)
    loop.start()
    try:
        yield listener
    finally:
        listener.stop()
        listener.stop()
        loop.join(_LAST_SECONDS)
