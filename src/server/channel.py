"""waitress' connections: deadlines, room for newcomers, the end after a refusal.

waitress parses in its one I/O thread (:class:`Channel` and its parser live
there) and runs the application in worker threads. What is added here:

* a client that sends a byte now and then is cut at a deadline;
* where connections run out, those that wait longest for their client give way;
* what the parser refuses is answered by the application, too;
* after a refusal the rest of the body is read away for a while: closing a
  socket with unread input resets it, and the client would not see the answer;
* a client that says that it sends no more still gets an answer that is quick.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import itertools
import logging
import math
import socket
import time
from typing import TYPE_CHECKING, Any

from waitress.server import TcpWSGIServer

from .gate import GENERATION_PATHS
from .output import Output, excess
from .parser import Parser
from .refusal import RefusalTask
from .task import Task

if TYPE_CHECKING:
    from collections.abc import Callable

    from .loop import Members
    from .options import ServerOptions

__all__ = ["Channel", "Server"]

_log = logging.getLogger(__name__)

_LINGER_SECONDS = 5.0
"""How long the rest of a refused body is read away."""
_RESERVE = 16
"""One in so many connections is kept free, so that a newcomer is always taken at once."""
_READ_SECONDS = 5.0
"""From when on one who has a whole answer to read may give way to newcomers."""
_NEWCOMER_SECONDS = 0.5
"""In which a client that has connected sends its request. Until then it never gives way: on a busy
machine the request of one who came with many others is late, or not read yet. Where all are
newcomers the next ones wait so long in the kernel."""
_UNREAD_SECONDS = 5.0
"""How long a request that the loop is late in reading is no reason to give way. Who sends one byte
after the other, and always has one on its way, does not hold its place for longer."""
_ACCEPTS = 64
"""Newcomers that are taken in a turn of the loop at most; the others have waited longer."""
_OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_FILES_SECONDS = 0.25
"""How long nobody is taken when there was no file for a connection."""


class Channel(Output):
    """One connection. All methods but :meth:`service` run in the I/O thread."""

    parser_class = Parser
    task_class = Task
    error_task_class = RefusalTask  # type: ignore[assignment] # waitress' own ask no application

    receiving_since: float | None = None
    """When the first byte came of the request that is not yet complete."""
    served_at = 0.0
    """When the last answer was made, which may still have to be sent."""
    _active_at = 0.0
    _refused = False
    """Whether the last request was refused before all of it was read. After it nothing is served."""
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

    def service(self) -> None:
        """Answer one request. Runs in a worker thread, or in the I/O thread for a refusal."""
        # Here and not when it is received: the answer may be made before that returns.
        self._refused = bool(self.requests[0].error)
        super().service()
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
        if self._linger_until is not None:
            return False
        if self.receiving_since is None:
            self.receiving_since = time.monotonic()
        result: bool = super().received(data)
        if self.request is None:
            self.receiving_since = None
        return result

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
        if self.receiving_since is None:
            return False
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
        return waits and time.monotonic() - self.served_at > _READ_SECONDS


class Server(TcpWSGIServer):
    """One listening socket and its connections."""

    channel_class = Channel
    options: ServerOptions
    """Set by whoever makes the server, before the I/O thread runs, as is :attr:`has_no_place`."""
    has_no_place: Callable[[], bool]
    """Whether no generation has a place now; see :class:`.listener.Listener`."""

    next_channel_cleanup = math.inf  # type: ignore[assignment] # it only compares
    """waitress would go by the wall clock; :meth:`readable` does what it would."""
    _maintained_at = 0.0
    _accept_again_at = 0.0
    _is_short_of_files = False

    @property
    def in_loop(self) -> bool:
        """Whether the thread that asks is the I/O loop's."""
        return self._connections().in_loop

    def changed(self, channel: Output) -> None:
        """Have the loop ask a channel what it waits for now. Safe from any thread."""
        self._connections().changed(channel)
        if not self.in_loop:
            self.wake()

    def later(self, action: Callable[[], None]) -> None:
        """Have the loop call ``action``, where closing a connection cannot confuse it.

        Safe from any thread, with any lock.
        """
        self._connections().later(action)
        if not self.in_loop:
            self.wake()

    def add_task(self, channel: Channel) -> None:  # type: ignore[override] # which is its task
        """Have a channel's next request answered by a worker thread; a refusal by the loop.

        A refusal waits for nothing and is shorter than the way to a thread. Not within this call,
        in which the channel holds a lock; the next one in a pipeline comes from whoever answers.
        """
        request: Any = channel.requests[0]
        if self.in_loop and not channel.total_outbufs_len:
            if not request.error and request.command == "POST" and request.path in GENERATION_PATHS:
                request.turned_away = self.has_no_place()
            if request.error or request.turned_away:
                self.later(channel.service)
                return
        super().add_task(channel)  # type: ignore[arg-type] # as above

    def wake(self) -> None:
        """End the loop's wait. Safe from any thread and in signal handlers."""
        trigger: Any = self.trigger
        trigger.pull_trigger()

    def pull_trigger(self) -> None:
        """Do nothing. waitress' channels say so that something changed, but not where."""

    def readable(self) -> bool:
        """Whether newcomers are taken. The loop asks before each wait."""
        now = time.monotonic()
        if now - self._maintained_at >= self.adj.cleanup_interval:
            self._maintained_at = now
            self.maintenance(now)
        elif self.is_full:
            self._make_room()
        return now >= self._accept_again_at and bool(super().readable())

    def accept(self) -> tuple[socket.socket, Any] | None:
        """Take a newcomer from the kernel; None where there is none, or no file left for one.

        Without a file, it waits in the kernel: to look again at once would
        only spin. One who uses the server gives way meanwhile.
        """
        try:
            taken: tuple[socket.socket, Any] | None = super().accept()
        except OSError as error:
            if error.errno not in _OUT_OF_FILES:
                return None
            if not self._is_short_of_files:
                _log.warning("no file is left for new connections; they wait")
            self._is_short_of_files = True
            self._accept_again_at = time.monotonic() + _FILES_SECONDS
            self._give_way(1)
            return None
        if taken is not None and self._is_short_of_files:
            _log.warning("new connections are taken again")
            self._is_short_of_files = False
        return taken

    def close_channels(self) -> None:
        """Close all connections, whatever they still have to send. In the loop's thread."""
        for channel in self._channels():
            channel.abandon()

    def maintenance(self, now: float) -> None:
        """Close connections whose time is over, by the monotonic clock."""
        super().maintenance(now)  # type: ignore[arg-type] # it only subtracts
        channels = self._channels()
        stalled_since = now - self.options.idle_seconds
        for channel in channels:
            if channel.is_stalled(stalled_since):
                # will_close is looked at when the socket takes output, which this one never does.
                self.later(channel.abandon)
            elif channel.is_overdue(self.options):
                channel.will_close = True
            if channel.will_close:
                # Before anything more is read of it, which would be lost.
                self._connections().changed(channel)
        for greedy in excess(each for each in channels if now - each.served_at > _READ_SECONDS):
            self.later(greedy.abandon)
        self._make_room()

    def handle_accept(self) -> None:
        """Take the connections that wait, at the cost of others where there are too many.

        All of them in one turn of the loop: of 200 that come at once the last one is read sooner.
        """
        for _ in range(_ACCEPTS):
            before = len(self._connections())
            super().handle_accept()
            # Fewer: there was no file for one, and another has given way for it.
            if len(self._connections()) <= before or self.is_full:
                break
        self._make_room()

    @property
    def is_full(self) -> bool:
        """Whether newcomers have to wait in the kernel until somebody may be made to give way."""
        return len(self._connections()) >= self.adj.connection_limit

    @property
    def busy(self) -> bool:
        """Whether a request runs, or an answer is still being sent."""
        return any(channel.requests or channel.total_outbufs_len for channel in self._channels())

    def _make_room(self) -> None:
        """Let the connections give way that wait longest for their client, idle or half-way.

        Neither idle connections nor requests that never end may make the server deaf.
        """
        limit = self.adj.connection_limit
        self._give_way(len(self._connections()) - (limit - max(2, limit // _RESERVE)))

    def _give_way(self, count: int) -> None:
        """Close so many connections: those that wait long for their client, then slow readers.

        Those that have just come never give way: who comes with many others, or
        while all others are busy, is to be answered, if only with a refusal. Nor do those whose
        request has come: on a busy machine the loop is late, and not they.
        """
        if count <= 0:
            return
        channels = [each for each in self._connections().values() if isinstance(each, Channel)]
        waiting = [each for each in channels if each.can_give_way() and not each.is_new()]
        waiting.sort(key=Channel.waiting_seconds, reverse=True)
        old = list(itertools.islice(itertools.filterfalse(Channel.has_sent, waiting), count))
        readers = heapq.nlargest(
            count - len(old), filter(Channel.only_reads, channels), key=Channel.waiting_seconds
        )
        for channel in readers:
            self.later(channel.abandon)
        for channel in old:
            # Now: what is read of it later in this turn of the loop would be lost.
            channel.will_close = True
            channel.handle_close()

    def _connections(self) -> Members:
        """Return what the limit counts; all listening sockets share it."""
        connections: Members = getattr(self, "_map")  # noqa: B009 - not in the stubs
        return connections

    def _channels(self) -> list[Channel]:
        active: Any = self.active_channels
        return list(active.values())
