"""The listening socket: who is taken, who gives way, and which thread answers.

Lives in waitress' one I/O thread. What is added to waitress here:

* where connections run out, those that wait longest for their client give way;
* where there are no files, newcomers wait in the kernel;
* a generation that has been read has its place or is refused, and of many that come at
  once those without one are refused before anybody begins with the others.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import logging
import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from waitress.server import TcpWSGIServer

from .channel import Channel
from .operation import is_operation
from .output import excess

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from .caller import Caller
    from .loop import Members
    from .options import ServerOptions
    from .output import Output
    from .places import Places

__all__ = ["Server"]

_log = logging.getLogger(__name__)

_RESERVE = 16
"""One in so many connections is kept free, so that a newcomer is always taken at once."""
_ACCEPTS = 64
"""Newcomers that are taken in a turn of the loop at most; the others have waited longer."""
_OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_FILES_SECONDS = 0.25
"""How long nobody is taken when there was no file for a connection."""


class Server(TcpWSGIServer):
    """One listening socket and its connections."""

    channel_class = Channel
    options: ServerOptions
    """Set by whoever makes the server, before the I/O thread runs, as is :attr:`places`."""
    places: Places | None
    """Those of generations; None where there are none here."""

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

    def in_burst(self) -> None:
        """See :meth:`.loop.Members.in_burst`."""
        self._connections().in_burst()

    def chore(self, action: Callable[[], None]) -> None:
        """See :meth:`.loop.Members.chore`."""
        self._connections().chore(action)

    def add_task(self, channel: Channel) -> None:  # type: ignore[override] # which is its task
        """Have a channel's next request answered by a worker thread; what is quick by the loop.

        A refusal, a probe and a poll wait for nothing and are shorter than the way to a thread, on
        which they would wait for their turn twice. Not within this call, in which the channel holds
        a lock; the next one in a pipeline comes from whoever answers.
        A request that has a place gives way to the refusals of those that come with it: it takes
        seconds, and they should take none.
        """
        request: Any = channel.requests[0]
        to_thread = partial(super().add_task, channel)  # type: ignore[arg-type] # as above
        if not self.in_loop:
            to_thread()
            return
        members = self._connections()
        request.read_at = time.monotonic()
        if self.places is not None:
            self.places.keep(request)
        caller: Caller | None = request.caller
        is_refused = request.error or (caller is not None and caller.refusal is not None)
        if is_refused and not channel.total_outbufs_len:
            members.later(channel.service)
        elif is_operation(request.command, request.path) and not channel.total_outbufs_len:
            members.soon(channel.service)
        elif caller is not None:
            members.after_burst(to_thread)
        else:
            to_thread()

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
        for greedy in excess(each for each in channels if each.has_had_time_to_read()):
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
