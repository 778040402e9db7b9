"""Bytes on a connection, as no client's library sends them, and all that comes back."""

from __future__ import annotations

import re
import socket
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["exchange", "request_bytes", "statuses"]

_PATIENCE = 30.0


def request_bytes(method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """Return a request of HTTP/1.1 with these headers and no others; a length goes with a body."""
    given = dict(headers)
    if body and "Transfer-Encoding" not in given:
        given.setdefault("Content-Length", str(len(body)))
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode() + body


def exchange(port: int, data: bytes, *, cuts: Sequence[int] = ()) -> bytes:
    """Send bytes, and return what comes until the server closes.

    Args:
        port: Of the server, on 127.0.0.1.
        data: What to send. A server that has heard enough need not read the rest.
        cuts: Where to cut it in pieces, each of which is sent by itself.
    """
    received = b""
    with socket.create_connection(("127.0.0.1", port), _PATIENCE) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for begin, end in pairwise([0, *sorted(cuts), len(data)]):
                connection.sendall(data[begin:end])
        except (BrokenPipeError, ConnectionResetError):
            pass  # what it said before is still to be read
        while chunk := connection.recv(65536):
            received += chunk
    return received


def statuses(received: bytes) -> list[int]:
    """Return the statuses of all answers in what came."""
    return [int(found) for found in re.findall(rb"HTTP/1\.[01] (\d{3}) ", received)]
