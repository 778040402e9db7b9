"""A receiver for OTLP over HTTP in a process of its own, which counts and keeps nothing.

``python -m bench.receiver`` prints its port and serves until it is terminated. Decoding would
take the machine's time from what is measured.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from .servers import helper

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["receiver"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    status = 200
    delay = 0.0

    def do_POST(self) -> None:
        """Take an export."""
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.delay)
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@contextmanager
def receiver(status: int = 200, delay: float = 0.0) -> Iterator[str]:
    """Run one and return its base URL.

    Args:
        status: What it answers.
        delay: Seconds that it takes for it.
    """
    with helper("bench.receiver", str(status), str(delay)) as port:
        yield f"http://127.0.0.1:{port}"


def main() -> None:
    """Serve."""
    _Handler.status, _Handler.delay = int(sys.argv[1]), float(sys.argv[2])
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
