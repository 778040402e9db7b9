"""waitress' connections: deadlines, what their clients have sent, the end after a refusal.

waitress parses in its one I/O thread (:class:`Channel` and its parser live
there) and runs the application in worker threads. What is added here:

* a client that sends a byte now and then is cut at a deadline;
* who may give way where connections run out, which :mod:`.tcp_server` decides;
* what the parser refuses is answered by the application, too;
* after a refusal the rest of the body is read away for a while: closing a
  socket with unread input resets it, and the client would not see the answer;
* a client that says that it sends no more still gets an answer that is quick.
"""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING, Any

from .output import Output
from .parser import Parser
from .refusal import RefusalTask
from .task import Task

if TYPE_CHECKING:
    from waitress.adjustments import Adjustments

    from .options import ServerOptions

__all__ = ["Channel"]

_LINGER_SECONDS = 5.0
"""How long the rest of a refused body is read away."""
_READ_SECONDS = 5.0
"""From when on one who has a whole answer to read may give way to newcomers."""
_NEWCOMER_SECONDS = 0.5
"""In which a client that has connected sends its request. Until then it never gives way: on a busy
machine the request of one who came with many others is late, or not read yet. Where all are
newcomers the next ones wait so long in the kernel."""
_UNREAD_SECONDS = 5.0
"""How long a request that the loop is late in reading is no reason to give way. Who sends one byte
after the other, and always has one on its way, does not hold its place for longer."""


_DEEPEST = 64
"""Requests that one client may have sent ahead. One of them or two are usual, if any; who sends a
thousand at once has the loop read them while nobody else is heard. The connection ends with the
next one, after which the client has to send the others again, as HTTP says."""


class Channel(Output):
    """One connection. All methods but :meth:`service` run in the I/O thread."""

    task_class = Task
    error_task_class = RefusalTask  # type: ignore[assignment] # waitress' own ask no application

    receiving_since: float | None = None
    """When the first byte came of the request that is not yet complete."""
    served_at = 0.0
    """When the last answer was made, which may still have to be sent."""
    _active_at = 0.0
    _refused = False
    """Whether the last request was refused before all of it was read, or came with too many others.
    After it nothing is served."""
    _linger_until: float | None = None
    _ended = False
    """Whether the client has said that it sends no more."""

    @property
    def last_activity(self) -> float:
        """When something was last read, made or sent, by the monotonic clock."""
        return self._active_at

    @last_activity.setter
    def last_activity(self, _: float) -> None:
        # waitress brings the time of the wall clock, which can be set; then everybody would be cut.
        self._active_at = time.monotonic()

    def parser_class(self, adj: Adjustments) -> Parser:  # type: ignore[override] # waitress calls it
        """Return the parser of the next request; after very many that wait it is the last one."""
        parser = Parser(adj)
        parser.is_last = len(self.requests) >= _DEEPEST
        return parser

    def service(self) -> None:
        """Answer one request. Runs in a worker thread, or in the I/O thread for what is quick."""
        request: Any = self.requests[0]
        # Here and not when it is received: the answer may be made before that returns.
        self._refused = bool(request.error) or request.is_last
        try:
            super().service()
        finally:
            if request.caller is not None:
                request.caller.end_reservation()
        self.served_at = time.monotonic()
        if self.connected:
            self.changed()

    def handle_read(self) -> None:
        """Read once. A client that sends no more may still read: what runs is finished for it."""
        connection: Any = self.socket
        try:
            data = connection.recv(self.adj.recv_bytes)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.handle_close()
            return
        if data:
            self.last_activity = 0.0  # now; see the setter
            self.received(data)
        elif self.requests or self.total_outbufs_len:
            self._ended = True
        else:
            self.handle_close()

    def readable(self) -> bool:
        """Whether input is wanted; after its end the socket would be readable for ever."""
        return not (
            self._ended
            or self.will_close
            or self.close_when_flushed
            or self.waits_to_send()
            or len(self.requests) > self.adj.channel_request_lookahead
        )

    def writable(self) -> bool:
        """Whether output waits, or the connection is to be closed."""
        if self._ended and not self.requests:
            self.close_when_flushed = True
        return self.will_close or self.close_when_flushed or self.waits_to_send()

    def check_client_disconnected(self) -> bool:  # type: ignore[override] # waitress returns one
        """Whether the client left, as far as can be known: an answer that takes time ends."""
        return self._ended or not self.connected

    def received(self, data: bytes) -> bool:
        """Take bytes of the client."""
        if self._linger_until is not None or self._is_over():
            return False
        begins = self.receiving_since is None
        if begins:
            self.receiving_since = time.monotonic()
        result: bool = super().received(data)
        request: Any = self.request
        if request is not None and not request.has_begun:
            self.request = None
        if self.request is None:
            self.receiving_since = None
        elif begins:
            server: Any = self.server
            server.in_burst()
        return result

    def _is_over(self) -> bool:
        """Whether the last request that waits or runs is the connection's last."""
        last: Any = self.requests[-1:]  # a thread that answers may take it away meanwhile
        return any(each.ends_connection for each in last)

    def handle_close(self) -> None:
        """Close the connection; after a refusal only once the client had time to read it.

        In a thread that answers, where waitress may find that a send fails, nothing happens: the
        loop finds it, too.
        """
        server: Any = self.server
        if not server.in_loop:
            return
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
        super().abandon()

    def is_overdue(self, options: ServerOptions) -> bool:
        """Whether the client had its time to send a request, or to read a refusal."""
        now = time.monotonic()
        if self._linger_until is not None:
            return now >= self._linger_until
        if self.receiving_since is None or self.requests:
            return False  # what is sent ahead has time until the answer to what was sent before
        headers_done = self.request is not None and self.request.headers_finished
        limit = options.body_seconds if headers_done else options.header_seconds
        return now - self.receiving_since > limit

    def is_stalled(self, cutoff: float) -> bool:
        """Whether output waits and the client has read none of it since ``cutoff``."""
        return bool(self.total_outbufs_len) and self.last_activity < cutoff

    def can_give_way(self) -> bool:
        """Whether the next step is the client's: nothing runs, and nothing is to be sent."""
        return not (self.requests or self.total_outbufs_len)

    def is_new(self) -> bool:
        """Whether the client's next step is still expected at any moment."""
        return self.waiting_seconds() <= _NEWCOMER_SECONDS

    def has_sent(self) -> bool:
        """Whether the client's next step has come, and only the loop has yet to read it."""
        in_time = self.receiving_since is None or self.waiting_seconds() <= _UNREAD_SECONDS
        if self._linger_until is not None or not in_time:
            return False
        connection: Any = self.socket
        try:
            return bool(connection.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def waiting_seconds(self) -> float:
        """How long the client's next step is waited for: a request, or the rest of one."""
        if self.receiving_since is not None:
            return time.monotonic() - self.receiving_since
        return time.monotonic() - self.last_activity

    def only_reads(self) -> bool:
        """Whether all is made that this connection still has to be sent, and was for a while."""
        waits = bool(self.total_outbufs_len) and not self.requests
        return waits and self.has_had_time_to_read()

    def has_had_time_to_read(self) -> bool:
        """Whether what is still to be sent has been there for a while."""
        return time.monotonic() - self.served_at > _READ_SECONDS
