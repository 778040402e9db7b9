"""What a connection still has to send: it waits in memory, within a bound for all together."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from waitress.channel import ClientDisconnected, HTTPChannel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["IN_MEMORY", "UNREAD_STREAM", "Output", "excess"]

IN_MEMORY = sys.maxsize
"""Bytes from which on output would go to a file: never. Where a disk is full waitress forgets what
it has queued, and the client waits for ever or is cut in silence."""
UNREAD_STREAM = 64 * 1024 * 1024
"""Bytes of a stream that may wait for its slow reader before its thread waits too. A whole answer
waits with all its bytes, which were in memory before."""
_UNREAD = 512 * 1024 * 1024
"""Bytes that may wait for all slow readers together; whoever has most of it then gives way."""
_ONE_PIECE = 64 * 1024
"""Bytes of a head and the first of its body that are sent together."""


class Output(HTTPChannel):
    """A connection that ends where its output can neither be kept nor sent."""

    _pieces: list[bytes] | None = None
    """What is written while it is gathered."""

    def abandon(self) -> None:
        """Close the connection with what it still has to send; its request learns of it."""
        self.handle_close()

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Queue in one piece what is written within the block by the thread that answers.

        What is large is not copied for it: the pieces are queued one after the other.
        """
        pieces = self._pieces = []
        try:
            yield
        finally:
            self._pieces = None
        if sum(map(len, pieces)) <= _ONE_PIECE:
            pieces = [b"".join(pieces)]
        for piece in pieces:
            self.write_soon(piece)

    def write_soon(self, data: bytes) -> int:
        """Queue output. Where memory ends the client is cut: it would wait for what never comes."""
        if self._pieces is not None:
            self._pieces.append(data)
            return len(data)
        try:
            queued = super().write_soon(data)
        except ClientDisconnected:
            raise
        except Exception:
            self._cut()
            raise
        if self.total_outbufs_len:
            self.changed()
        return queued

    def waits_to_send(self) -> bool:
        """Whether there is output for the loop to send, and not just one that is being written now.

        Who writes sends what the socket takes, and says so where some is left. With too much of it
        it waits for the loop instead.
        """
        if self.total_outbufs_len > self.adj.outbuf_high_watermark:
            return True
        if not (self.total_outbufs_len and self.outbuf_lock.acquire(blocking=False)):
            return False
        self.outbuf_lock.release()
        return True

    def changed(self) -> None:
        """Have the loop ask again what this connection waits for. For the thread that answers."""
        server: Any = self.server
        server.changed(self)

    @property
    def chores(self) -> Callable[[Callable[[], None]], None] | None:
        """What has the loop do something a little later; None in any other thread."""
        server: Any = self.server
        return server.chore if server.in_loop else None

    def _flush_exception(
        self,
        flush: Callable[..., Any] | None,
        do_close: bool = True,  # noqa: FBT001, FBT002 - waitress calls it so
    ) -> tuple[Any, bool] | None:
        """Send what waits. Where that fails the client is cut now, and not once it reads."""
        sent: tuple[Any, bool] | None = super()._flush_exception(flush, do_close)  # type: ignore[misc]
        if sent is not None and sent[1]:
            self._cut()
        return sent

    def _flush_some(self, do_close: bool = True) -> bool:  # noqa: FBT001, FBT002 - as above
        """Send what the socket takes. What is sent is dropped: an idle connection holds nothing."""
        sent: bool = super()._flush_some(do_close)  # type: ignore[misc]
        if sent and self.connected and not self.total_outbufs_len:
            self.outbufs[-1].prune()
        return sent

    def _cut(self) -> None:
        """Have the loop close the connection. Safe from any thread."""
        server: Any = self.server
        server.later(self.abandon)


def excess(channels: Iterable[Output]) -> list[Output]:
    """Return those with most unread output, so many that the rest is within the bound."""
    by_size = sorted(channels, key=lambda channel: channel.total_outbufs_len)
    held = sum(channel.total_outbufs_len for channel in by_size)
    found = []
    while held > _UNREAD:
        found.append(by_size.pop())
        held -= found[-1].total_outbufs_len
    return found
