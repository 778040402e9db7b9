"""waitress' connections, made strict: deadlines, JSON errors, no request smuggling.

waitress parses in its one I/O thread (:class:`Channel` and :class:`Parser`
live there) and runs the application in worker threads. What is added here:

* a request that two parsers could cut differently is refused
  (Content-Length beside Transfer-Encoding, or several transfer codings);
* a client that sends a byte now and then is cut at a deadline;
* errors below the application are JSON too;
* after a refusal the rest of the body is read away for a while: closing a
  socket with unread input resets it, and the client would not see the answer.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import socket
import time
from typing import TYPE_CHECKING, Any

from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask

from ..resilience.errors import (
    BodyTooLargeError,
    InternalError,
    InvalidRequestError,
    PharosError,
)
from .json_text import error_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from .options import ServerOptions

__all__ = ["Channel", "Server"]

_LINGER_SECONDS = 5.0
"""How long the rest of a refused body is read away."""
_CODINGS = re.compile(rb"\r\ntransfer-encoding[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE)
_STATUS_TEXT = {
    400: "Bad Request",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
}


class Parser(HTTPRequestParser):
    """Refuses what other parsers could read differently."""

    def parse_header(self, header_plus: bytes) -> None:
        """Parse the header block; raises ``ParsingError`` on anything dubious."""
        codings = _CODINGS.findall(header_plus)
        if codings and (len(codings) > 1 or codings[0].strip().lower() != b"chunked"):
            message = "Transfer-Encoding must be 'chunked', once, or be left out"
            raise ParsingError(message)
        try:
            super().parse_header(header_plus)
        except ValueError:
            # An IPv6 address without its end, or a Content-Length of thousands of digits.
            message = "The request line or Content-Length cannot be read"
            raise ParsingError(message) from None
        if codings and ("CONTENT_LENGTH" in self.headers or self.version != "1.1"):
            message = "Transfer-Encoding goes with HTTP/1.1 and without Content-Length only"
            raise ParsingError(message)
        if not codings and self.content_length == 0:
            # waitress would answer "100 Continue" and wait for a body that never comes.
            self.expect_continue = False


class JsonErrorTask(ErrorTask):
    """Answers what the application never saw, in the shape of its own errors."""

    def execute(self) -> None:
        """Write the error and close the connection."""
        request: Any = self.request
        found = request.error
        status = found.code
        body = error_json(_error(status, found.body))
        self.status = f"{status} {_STATUS_TEXT.get(status, found.reason)}"
        self.response_headers = [
            ("Content-Type", "application/json"),
            ("X-Request-Id", f"req_{secrets.token_hex(12)}"),
        ]
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(b"" if getattr(request, "command", "") == "HEAD" else body)


class Channel(HTTPChannel):
    """One connection. All methods run in the I/O thread."""

    parser_class = Parser
    error_task_class = JsonErrorTask

    receiving_since: float | None = None
    """When the first byte came of the request that is not yet complete."""
    _refused = False
    """Whether a request was refused before all of it was read."""
    _linger_until: float | None = None

    def received(self, data: bytes) -> bool:
        """Take bytes of the client."""
        if self._linger_until is not None:
            return False
        if self.receiving_since is None:
            self.receiving_since = time.monotonic()
        result: bool = super().received(data)
        if self.request is None:
            self.receiving_since = None
        self._refused = self._refused or any(request.error for request in tuple(self.requests))
        return result

    def handle_close(self) -> None:
        """Close the connection; after a refusal only once the client had time to read it."""
        if self.will_close and self.connected and self._refused and self._linger_until is None:
            self.will_close = False
            self._linger_until = time.monotonic() + _LINGER_SECONDS
            connection: Any = self.socket
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
                return
        super().handle_close()

    def abandon(self) -> None:
        """Close the connection with what it still has to send; its request learns of it."""
        self._refused = False
        self.handle_close()

    def is_overdue(self, options: ServerOptions) -> bool:
        """Whether the client had its time to send a request, or to read a refusal."""
        now = time.monotonic()
        if self._linger_until is not None:
            return now >= self._linger_until
        if self.receiving_since is None:
            return False
        headers_done = self.request is not None and self.request.headers_finished
        limit = options.body_seconds if headers_done else options.header_seconds
        return now - self.receiving_since > limit

    def is_stalled(self, cutoff: float) -> bool:
        """Whether output waits and the client has read none of it since ``cutoff``."""
        return bool(self.total_outbufs_len) and self.last_activity < cutoff

    def is_idle(self) -> bool:
        """Whether nothing is asked and nothing is to be sent."""
        return not (self.requests or self.request or self.total_outbufs_len)


class Server(TcpWSGIServer):
    """One listening socket and its connections."""

    channel_class = Channel
    options: ServerOptions
    """Set by whoever makes the server, before the I/O thread runs."""

    def maintenance(self, now: float) -> None:
        """Close connections whose time is over. waitress calls it about every second."""
        super().maintenance(int(now))
        channels = self._channels()
        stalled_since = now - self.options.idle_seconds
        for channel in channels:
            if channel.is_stalled(stalled_since):
                # will_close is looked at when the socket takes output, which this one never does.
                self._from_loop(channel.abandon)
            elif channel.is_overdue(self.options):
                channel.will_close = True
        if self.in_connection_overflow:
            # Idle connections must not make the server deaf: the oldest give way.
            idle = sorted(filter(Channel.is_idle, channels), key=_last_activity)
            for channel in idle[: (len(idle) + 1) // 2]:
                channel.will_close = True

    @property
    def busy(self) -> bool:
        """Whether a request runs, or an answer is still being sent."""
        return any(channel.requests or channel.total_outbufs_len for channel in self._channels())

    def _from_loop(self, action: Callable[[], None]) -> None:
        """Have the I/O loop call ``action`` where closing a connection cannot confuse it."""
        trigger: Any = self.trigger
        trigger.pull_trigger(action)

    def _channels(self) -> list[Channel]:
        active: Any = self.active_channels
        return list(active.values())


def _last_activity(channel: Channel) -> float:
    return channel.last_activity


def _error(status: int, detail: str) -> PharosError:
    """Return our error for one of waitress' own."""
    match status:
        case 413:
            return BodyTooLargeError(
                "The request body is larger than this server accepts. "
                "Send less text, or raise the server's body limit."
            )
        case 500:
            return InternalError("The server failed unexpectedly. Its log has the details.")
        case 431:
            return InvalidRequestError(
                "The request's headers are too large. Send fewer, or shorter."
            )
        case _:
            return InvalidRequestError(f"This is not a valid HTTP request: {_plain(detail)}.")


def _plain(detail: str) -> str:
    """Return waitress' words without what they quote of the request."""
    return detail.partition('"')[0].strip() or "it cannot be parsed"
