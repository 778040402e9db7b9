"""A server in a process of its own whose answer takes no work: what a loaded machine takes for one.

``python -m bench.echo`` prints its port, and answers each request with the same few bytes until it is
terminated. A request has to come in one piece. It answers one connection at a time.
"""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .servers import helper

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["echo"]

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextmanager
def echo() -> Iterator[int]:
    """Answer while the context lasts; its value is the port on 127.0.0.1."""
    with helper("bench.echo") as port:
        yield port


def main() -> None:
    """Answer until terminated."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while connection.recv(65536):
                    connection.sendall(_ANSWER)


if __name__ == "__main__":
    main()
