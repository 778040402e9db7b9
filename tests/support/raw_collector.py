"""A collector whose answers are bytes of any kind, at any pace: broken ones, and hostile ones."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

__all__ = ["RawCollector", "raw_collector"]


class RawCollector:
    """Reads requests whole, and has a function answer each. Threads: one per connection."""

    def __init__(self, answer: Callable[[RawCollector, socket.socket], None]) -> None:
        self._answer = answer
        self._closing = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept)]
        self._open: list[socket.socket] = []
        self.requests: list[bytes] = []
        """The heads of those that came."""
        self.sent = 0
        """Bytes that :meth:`send` got rid of."""
        self._threads[0].start()

    @property
    def endpoint(self) -> str:
        """The base URL for exporters."""
        return f"http://127.0.0.1:{self._server.getsockname()[1]}"

    @property
    def connections(self) -> int:
        """How many were made."""
        return len(self._open)

    def send(self, to: socket.socket, data: bytes) -> None:
        """Send a part of an answer."""
        to.sendall(data)
        self.sent += len(data)

    def pause(self, seconds: float) -> bool:
        """Let time pass between two parts; False when the collector is to end."""
        return not self._closing.wait(seconds)

    def close(self) -> None:
        """End all connections and threads."""
        self._closing.set()
        # Closing it would not wake up who waits in accept.
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self._closing.is_set():
                connection, _ = self._server.accept()
                self._open.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        # A client that has seen enough resets it.
        with contextlib.suppress(OSError, ValueError), connection.makefile("rb") as lines:
            while head := _head(lines):
                length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
                lines.read(int(length))
                self.requests.append(head)
                self._answer(self, connection)


def _head(lines: BinaryIO) -> bytes:
    """Read up to the empty line; nothing at the end of the connection."""
    head = b""
    while line := lines.readline():
        if line == b"\r\n":
            return head
        head += line
    return b""


@contextlib.contextmanager
def raw_collector(answer: Callable[[RawCollector, socket.socket], None]) -> Iterator[RawCollector]:
    """Run a collector of raw bytes.

    Args:
        answer: Called with the collector and a connection after each request, in
            the connection's thread. It may return at any time.
    """
    running = RawCollector(answer)
    try:
        yield running
    finally:
        running.close()
