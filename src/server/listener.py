"""The listening sockets, the I/O loop, and the end: stop, drain, leave.

The loop runs in the thread that calls :meth:`Listener.run`; in a server that
is the main thread, where signals arrive too.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import resource
import socket
import time
from typing import TYPE_CHECKING

from waitress.adjustments import Adjustments
from waitress.task import ThreadedTaskDispatcher

from ..resilience.sizing import OTHER_FILES
from .loop import Loop, Members
from .output import IN_MEMORY, UNREAD_STREAM
from .tcp_server import Server

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed.wsgi import WSGIApplication

    from .options import ServerOptions
    from .places import Places
    from .shutdown import Shutdown

__all__ = ["ListenError", "Listener"]

_log = logging.getLogger(__name__)

_LOOP_SECONDS = 1.0
"""How often deadlines of connections are looked at while nothing happens."""
_HURRIED_LOOP_SECONDS = 0.05
_LAST_WORDS_SECONDS = 2.0
"""Time to deliver the error events of requests that the drain cut off."""


def _nothing() -> None:
    """Nobody wants to know."""


class ListenError(Exception):
    """The server cannot listen; the text says what to do."""


class Listener:
    """Owns the sockets and the worker threads. Made before the model is loaded.

    Args:
        application: What answers.
        options: Fixed for the listener's life.
        shutdown: Where the application sees how far the drain is.
        on_drain: Called once in the thread of :meth:`run`, when new work is refused.
        places: Keeps them for generations, in that thread; None where nothing is generated.
        on_turn: Called in that thread each time that the loop has turned; must be quick.
        turn_seconds: How often the loop has to turn at least while nothing happens.

    Raises:
        ListenError: The address is taken, not allowed, or not of this machine.
    """

    def __init__(
        self,
        application: WSGIApplication,
        options: ServerOptions,
        shutdown: Shutdown,
        *,
        on_drain: Callable[[], None],
        places: Places | None = None,
        on_turn: Callable[[], None] = _nothing,
        turn_seconds: float = _LOOP_SECONDS,
    ) -> None:
        self._options = options
        self._on_drain = on_drain
        self._places = places
        self._on_turn = on_turn
        self._loop_seconds = min(_LOOP_SECONDS, turn_seconds)
        self._shutdown = shutdown
        self._stops = 0
        self._deadline = 0.0
        sockets = _bind(options.host, options.port)
        self.port: int = sockets[0].getsockname()[1]
        self._members = Members()
        adjustments = _adjustments(options, sockets)
        self._dispatcher = ThreadedTaskDispatcher()
        self._dispatcher.set_thread_count(adjustments.threads)
        self._servers = [self._server(application, adjustments, one) for one in sockets]
        self._loop = Loop(self._members, self._servers)

    @property
    def url(self) -> str:
        """Where clients reach the server."""
        host = self._options.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def threads(self) -> tuple[int, int]:
        """Return how many threads answer requests now, and how many have nothing to do."""
        busy = self._dispatcher.active_count
        return busy, max(0, len(self._dispatcher.threads) - busy)

    def queued(self) -> int:
        """Return how many requests wait for a thread."""
        return len(self._dispatcher.queue)

    def run(self) -> None:
        """Serve until :meth:`stop` was called and the drain is over."""
        try:
            while not (self._stops and self._drained()):
                hurried = self._stops or self._servers[0].is_full
                wait = _HURRIED_LOOP_SECONDS if hurried else self._loop_seconds
                self._loop.turn(wait)
                self._on_turn()
        finally:
            self._members.end_bursts()
            # Who still answers finds its connection closed; what wakes the loop is open till then.
            for server in self._servers:
                server.close_channels()
            self._dispatcher.shutdown(timeout=1)
            self._members.close()

    def stop(self) -> None:
        """Begin the drain; called again, end it. Safe from any thread and in signal handlers."""
        self._stops += 1
        with contextlib.suppress(OSError):
            self._servers[0].wake()

    def _drained(self) -> bool:
        """Take the next step of the drain; True when there is nothing left to wait for."""
        now = time.monotonic()
        if not self._shutdown.draining:
            self._shutdown.draining = True
            self._on_drain()
            self._deadline = now + self._options.drain_seconds
            _log.info("shutting down; running requests get %g s", self._options.drain_seconds)
        if not any(server.busy for server in self._servers):
            return True
        if self._shutdown.out_of_time:
            return now > self._deadline
        if now > self._deadline or self._stops > 1:
            self._shutdown.out_of_time = True
            self._deadline = now + _LAST_WORDS_SECONDS
            _log.warning("the time to finish is over; running requests end with an error")
        return False

    def _server(
        self, application: WSGIApplication, adjustments: Adjustments, sock: socket.socket
    ) -> Server:
        server = Server(
            application,
            self._members,
            _sock=sock,
            dispatcher=self._dispatcher,
            adj=adjustments,
            bind_socket=False,
            sockinfo=(sock.family, sock.type, sock.proto, sock.getsockname()),
        )
        server.options = self._options
        server.places = self._places
        return server


def _adjustments(options: ServerOptions, sockets: list[socket.socket]) -> Adjustments:
    adjustments = Adjustments(
        sockets=sockets,
        threads=options.thread_count,
        connection_limit=_allowed_connections(options.connection_count),
        # A client that leaves while nothing is sent is only seen when input is read meanwhile.
        channel_request_lookahead=1,
        # Of a chunked body: waitress counts the framing, which must not decide. A declared length
        # is compared with the exact limit by our parser.
        max_request_body_size=options.max_body_bytes + options.max_body_bytes // 4 + 65536,
        max_request_header_size=64 * 1024,
        recv_bytes=64 * 1024,
        outbuf_high_watermark=UNREAD_STREAM,
        outbuf_overflow=IN_MEMORY,
        channel_timeout=max(1, int(options.idle_seconds)),
        cleanup_interval=1,
        # Nobody trusts these headers here, but the metrics look whether there are any.
        clear_untrusted_proxy_headers=False,
        # A client that leaves is no event for the log.
        log_socket_errors=False,
        expose_tracebacks=False,
        ident="pharos",
        server_name="localhost",
    )
    # For the parser, which waitress gives nothing else.
    vars(adjustments)["options"] = options
    return adjustments


def _allowed_connections(wanted: int) -> int:
    """Raise the limit of open files for ``wanted`` connections; return how many it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    target = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        soft = target
    if soft < needed:
        _log.warning("only %d files may be open: at most %d connections", soft, soft - OTHER_FILES)
        return max(OTHER_FILES, soft - OTHER_FILES)
    return wanted


def _bind(host: str, port: int) -> list[socket.socket]:
    """Return bound sockets, one per address of ``host``; port 0 is chosen once for all."""
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError:
        message = f"'{host}' is not a name or address that this machine knows. Check the host."
        raise ListenError(message) from None
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    for family, kind, protocol, _, address in dict.fromkeys(found):
        place = (address[0], port, *address[2:])
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(place)
            # Here and not later: only this finds a port that somebody listens on.
            sock.listen(1024)
        except OSError as error:
            sock.close()
            failure = error
            if error.errno != errno.EADDRNOTAVAIL:
                break
            continue
        sockets.append(sock)
        port = sock.getsockname()[1]
    if sockets and (failure is None or failure.errno == errno.EADDRNOTAVAIL):
        return sockets
    for sock in sockets:
        sock.close()
    raise ListenError(_mend(host, port, failure))


def _mend(host: str, port: int, error: OSError | None) -> str:
    number = error.errno if error else None
    if number == errno.EADDRINUSE:
        return (
            f"Port {port} on {host} is taken by another program, or by a Pharos that "
            "runs already. Stop that one, or choose another port."
        )
    if number == errno.EACCES:
        return f"Port {port} needs privileges. Choose a port from 1024 on."
    if number == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine. Use 127.0.0.1, or 0.0.0.0 for all."
    return f"Cannot listen on {host}, port {port}: {error.strerror if error else 'no address'}."
