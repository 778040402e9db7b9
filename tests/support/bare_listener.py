"""A listener with as few threads as there can be, before any application."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from mlx_pharos.server.listener import Listener
from mlx_pharos.server.options import ServerOptions
from mlx_pharos.server.shutdown import Shutdown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed.wsgi import WSGIApplication

    from mlx_pharos.server.places import Places

__all__ = ["LOOP", "OPTIONS", "listening"]

LOOP = "the loop"
"""The name of the I/O thread."""
OPTIONS = ServerOptions(("tiny",), port=0, threads=1, drain_seconds=1.0)


@contextlib.contextmanager
def listening(
    application: WSGIApplication, opened: threading.Event, places: Places | None = None
) -> Iterator[Listener]:
    """Listen; at the end ``opened`` is set, which lets go of whoever waits in the application."""
    listener = Listener(application, OPTIONS, Shutdown(), on_drain=lambda: None, places=places)
    loop = threading.Thread(target=listener.run, name=LOOP)
    loop.start()
    try:
        yield listener
    finally:
        opened.set()
        listener.stop()
        loop.join(10)
        assert not loop.is_alive()
