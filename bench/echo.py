"""A server in a process of its own whose answer takes no work: what a loaded machine takes for one.

``python -m bench.echo`` prints its port, and answers each request with the same few bytes until it is
terminated. A request has to come in one piece. It answers one connection at a time.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["echo"]

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextmanager
def echo() -> Iterator[int]:
    """Answer while the context lasts; its value is the port on 127.0.0.1."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.echo"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(10)


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
