"""Takes what Alertmanager sends to a webhook."""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Webhook", "webhook"]


class Webhook:
    """The alerts that have come, and where they go to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._alerts: list[dict[str, Any]] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                """Keep a notification."""
                owner.take(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Stay silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"

    def take(self, notification: dict[str, Any]) -> None:
        """Keep a notification's alerts."""
        with self._lock:
            self._alerts += notification["alerts"]

    def alerts(self, name: str, status: str = "firing") -> list[dict[str, Any]]:
        """Return the alerts of a name as they came."""
        with self._lock:
            return [
                each
                for each in self._alerts
                if each["labels"]["alertname"] == name and each["status"] == status
            ]

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextlib.contextmanager
def webhook() -> Iterator[Webhook]:
    """Listen until the block ends."""
    running = Webhook()
    try:
        yield running
    finally:
        running.close()
