"""A load of streaming chats from one thread, cheap enough not to be what is measured.

It speaks just enough HTTP: one connection per request, server-sent events
until ``[DONE]``. Times are of the client's monotonic clock, in seconds.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import time
from dataclasses import dataclass, field

__all__ = ["Load", "Outcome", "run_load"]

_CONTENT = re.compile(rb'"content": ?"[^"]')
_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')
_REFUSED = b"HTTP/1.1 503"


class _RefusedError(OSError):
    """The server has no place now, and said when there may be one."""


@dataclass(frozen=True)
class Load:
    """What is sent: ``streams`` chats at once, each with its own prompt."""

    port: int
    model: str
    streams: int
    max_tokens: int
    salt: str
    """Goes into every prompt, so that no run finds another's in a prompt cache."""
    prompt: str = "Tell me a long story about the sea"
    attempts: int = 20
    """How often a request is sent at most, at once again where it was refused or cut."""
    limit_seconds: float = 300.0
    """What has not completed by then has failed."""


@dataclass
class Outcome:
    """What came back from one load."""

    seconds: float = 0.0
    completed: int = 0
    tokens: int = 0
    resets: int = 0
    """Connections that the server cut or refused."""
    failures: int = 0
    """Requests that were given up, or answered with an error."""
    first_token: list[float] = field(default_factory=list)
    per_token: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    """How long each attempt took that was answered with 503 and ``Retry-After``."""
    whole: list[float] = field(default_factory=list)
    """From the connection to the end, of completed requests."""
    streamed: list[tuple[float, float]] = field(default_factory=list)
    """From when to when each completed request streamed, by the monotonic clock."""

    @property
    def together(self) -> tuple[float, float]:
        """From when to when all were streaming at once; the end is before the begin where never."""
        assert not self.failures, self
        return max(begin for begin, _ in self.streamed), min(end for _, end in self.streamed)

    @property
    def rate(self) -> float:
        """Output tokens per second over the whole load."""
        return self.tokens / self.seconds


class _Chat:
    """One request on its own connection."""

    def __init__(self, load: Load, number: int) -> None:
        body = json.dumps(
            {
                "model": load.model,
                "messages": [{"role": "user", "content": f"{load.salt} {number}: {load.prompt}"}],
                "max_tokens": load.max_tokens,
                "temperature": 0.0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        ).encode()
        self._request = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        self._port = load.port
        self.attempts = 0
        self.connect()

    def connect(self) -> None:
        """Begin to connect. A server whose backlog is full lets the client's kernel try again."""
        self.attempts += 1
        self.begin = time.monotonic()
        self.first = self.last = 0.0
        self.received = bytearray()
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.connect_ex(("127.0.0.1", self._port))

    def send(self) -> None:
        """Send the request on the connection that was made, or raise why it was not."""
        error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, "connect")
        self.socket.sendall(self._request)

    def receive(self) -> bool:
        """Take what came; True at the end of the answer. Raises OSError when it was cut."""
        data = self.socket.recv(1 << 16)
        now = time.monotonic()
        if not data:
            if b"[DONE]" in self.received[-64:]:
                return True
            if self.received.startswith(_REFUSED) and b"\r\nRetry-After: " in self.received:
                raise _RefusedError
            raise ConnectionResetError
        if _CONTENT.search(data):
            self.first = self.first or now
            self.last = now
        self.received += data
        return b"[DONE]" in self.received[-64:]


def run_load(load: Load) -> Outcome:
    """Start all chats at once and wait for the last one. Bounded in time."""
    outcome = Outcome()
    selector = selectors.DefaultSelector()
    begin = time.monotonic()
    for number in range(load.streams):
        chat = _Chat(load, number)
        selector.register(chat.socket, selectors.EVENT_WRITE, chat)
    deadline = begin + load.limit_seconds
    while selector.get_map() and time.monotonic() < deadline:
        for key, _ in selector.select(timeout=1):
            _advance(selector, outcome, key, load.attempts)
    outcome.seconds = time.monotonic() - begin
    outcome.failures += len(selector.get_map())
    for key in list(selector.get_map().values()):
        key.data.socket.close()
    selector.close()
    return outcome


def _advance(
    selector: selectors.BaseSelector, outcome: Outcome, key: selectors.SelectorKey, attempts: int
) -> None:
    chat: _Chat = key.data
    try:
        if key.events & selectors.EVENT_WRITE:
            chat.send()
            selector.modify(chat.socket, selectors.EVENT_READ, chat)
            return
        done = chat.receive()
    except BlockingIOError:
        return
    except OSError as error:
        if isinstance(error, _RefusedError):
            outcome.refused.append(time.monotonic() - chat.begin)
        else:
            outcome.resets += 1
        selector.unregister(chat.socket)
        chat.socket.close()
        if chat.attempts < attempts:
            chat.connect()
            selector.register(chat.socket, selectors.EVENT_WRITE, chat)
        elif not isinstance(error, _RefusedError):
            outcome.failures += 1
        return
    if done:
        selector.unregister(chat.socket)
        chat.socket.close()
        _count(outcome, chat)


def _count(outcome: Outcome, chat: _Chat) -> None:
    found = _TOKENS.findall(bytes(chat.received[-2048:]))
    if not found or not chat.first:
        outcome.failures += 1
        return
    tokens = int(found[-1])
    outcome.completed += 1
    now = time.monotonic()
    outcome.streamed.append((chat.first, now))
    outcome.whole.append(now - chat.begin)
    outcome.tokens += tokens
    outcome.first_token.append(chat.first - chat.begin)
    if tokens > 1:
        outcome.per_token.append((chat.last - chat.first) / (tokens - 1))
