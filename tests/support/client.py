"""Talking to a server as a client does, down to the bytes."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlx_pharos.engine.client import EngineClient
    from mlx_pharos.server.listener import Listener
    from mlx_pharos.server.options import ServerOptions
    from mlx_pharos.server.shutdown import Shutdown

__all__ = ["Answer", "RunningServer", "events", "read_answer", "wait_until"]

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
_PATIENCE = 40.0
"""Seconds for an answer. Who measures how long one takes does so itself; a busy machine is no fault."""


@dataclass(frozen=True)
class Answer:
    """A response, read to its end."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        assert self.headers["Content-Type"] == "application/json", self.body
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error in OpenAI's shape; fails where the body is anything else."""
        body = self.json
        assert set(body) == {"error"}, body
        assert set(body["error"]) == {"message", "type", "param", "code"}
        detail: dict[str, Any] = body["error"]
        assert detail["message"]
        return detail


@dataclass(frozen=True)
class RunningServer:
    """A server under test and its parts."""

    options: ServerOptions
    engine: EngineClient
    listener: Listener
    shutdown: Shutdown
    operations: Listener | None = None
    """Answers probes and scrapes alone; it is there when the options have a port for it."""

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        return self.listener.port

    @property
    def url(self) -> str:
        """What an OpenAI client wants as its base URL."""
        return f"{self.listener.url}/v1"

    def connect(self, timeout: float = 10.0) -> socket.socket:
        """Open a connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Send one request and read its answer."""
        return self._exchange(self.port, method, path, body, headers)

    def observe(self, path: str) -> Answer:
        """GET a path of the operations; a server that has shut down still answers there."""
        assert self.operations is not None
        return self._exchange(self.operations.port, "GET", path, None, None)

    def _exchange(
        self,
        port: int,
        method: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str] | None,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        """GET a path."""
        return self.request("GET", path)

    def post(self, path: str, body: object, **headers: str) -> Answer:
        """POST a value as JSON, or bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("POST", path, data, {"Content-Type": "application/json"} | given)

    def chat(self, **fields: Any) -> Answer:
        """Ask the tiny model something, with these fields besides."""
        return self.post(CHAT, chat_body(**fields))

    def send(self, path: str, *, key: str = "", **fields: Any) -> socket.socket:
        """Send a request and return its connection, with nothing read from it."""
        data = json.dumps(fields).encode()
        connection = self.connect()
        authorization = f"Authorization: Bearer {key}\r\n" if key else ""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"{authorization}Content-Length: {len(data)}\r\n\r\n"
        )
        connection.sendall(head.encode() + data)
        return connection

    def wait_idle(self, timeout: float = 10.0) -> float:
        """Wait until the engine holds no request, and return the seconds that took."""
        start = time.monotonic()
        wait_until(lambda: self.engine.in_flight == 0, timeout)
        return time.monotonic() - start


def chat_body(**fields: Any) -> dict[str, Any]:
    """Return a chat request."""
    message = {"role": "user", "content": "Hello"}
    return {"model": "tiny", "messages": [message], "max_tokens": 8, "temperature": 0} | fields


def read_answer(connection: socket.socket) -> tuple[bytes, bytes]:
    """Return the head and the body of one answer that declares its length.

    One read may bring any part of it: the server may send head and body apart.
    """
    received = b""
    while True:
        head, end, body = received.partition(b"\r\n\r\n")
        declared = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
        if end and declared and len(body) >= int(declared[1]):
            return head, body[: int(declared[1])]
        chunk = connection.recv(65536)
        assert chunk, received
        received += chunk


def wait_until(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    """Wait for something that another thread or process does; fail when it does not come."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def events(stream: bytes) -> Iterator[Any]:
    """Yield what the events of a stream hold; comments are skipped, ``[DONE]`` must end it."""
    *blocks, rest = stream.split(b"\n\n")
    assert rest == b""
    data = [block for block in blocks if not block.startswith(b":")]
    assert data[-1] == b"data: [DONE]"
    for block in data[:-1]:
        yield json.loads(block.removeprefix(b"data: "))
