"""The I/O loop: waits for sockets, and lets those act that something has happened to.

waitress' own loop asks every connection before each wait what it waits for: of some hundred that
are idle, or that come at once, the asking costs more than the answers. Here a connection is asked
when it is new, after it has acted, and when another thread says that it has changed; once a second
all are asked, so that one that was forgotten is late and not lost.
"""

from __future__ import annotations

import logging
import math
import select
import selectors
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from waitress import wasyncore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Loop", "Members"]

_log = logging.getLogger(__name__)

_ASK_ALL_SECONDS = 1.0
_ACTIONS = 64
"""What is done in a turn at most of what the loop was asked to do; the sockets have theirs between."""
_BURST_SECONDS = 0.1
"""How long what can wait for the end of a burst waits at most. 200 that come at once are read, and most
of them refused, in 80 ms on two slow cores; with 25 ms it was twice that (``bench``, overload)."""
_FLAGS = {
    selectors.EVENT_READ: select.POLLIN,
    selectors.EVENT_WRITE: select.POLLOUT,
    selectors.EVENT_READ | selectors.EVENT_WRITE: select.POLLIN | select.POLLOUT,
}


class Members(dict[int, Any]):
    """Who takes part in a loop, by file descriptor: the map that waitress' objects go into.

    Members come, act and leave in the loop's thread alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self._selector = selectors.DefaultSelector()
        self._changed: deque[Any] = deque()
        self._wanted: deque[Callable[[], None]] = deque()
        self._quick: deque[Callable[[], None]] = deque()
        self._put_off: deque[tuple[float, Callable[[], None]]] = deque()
        """With when it waits no longer."""
        self._chores: deque[tuple[float, Callable[[], None]]] = deque()
        """Likewise."""
        self._is_in_burst = False
        """Whether anything has come in this turn that others may come with."""
        self._thread = 0

    def __setitem__(self, descriptor: int, member: Any) -> None:  # noqa: ANN401 - waitress' own
        super().__setitem__(descriptor, member)
        self.in_burst()
        self._changed.append(member)

    def __delitem__(self, descriptor: int) -> None:
        super().__delitem__(descriptor)
        self._want(descriptor, None, 0)

    def changed(self, member: Any) -> None:  # noqa: ANN401 - waitress' own
        """Have a member asked before the next wait. Safe from any thread; it does not end a wait."""
        self._changed.append(member)

    def later(self, action: Callable[[], None]) -> None:
        """Have the loop call ``action`` in a next turn, and wait for nothing before. As above."""
        self._wanted.append(action)

    def soon(self, action: Callable[[], None]) -> None:
        """As :meth:`later`, for what is no part of a burst: nobody waits for the end of it."""
        self._quick.append(action)

    def in_burst(self) -> None:
        """Say that something has come that more may come with. In the loop's thread."""
        self._is_in_burst = True

    def after_burst(self, action: Callable[[], None]) -> None:
        """Have the loop call ``action`` when a turn brings no more, or after some milliseconds.

        It must be quick: all that are due begin in one turn. Those who want that are part of a
        burst, too. In the loop's thread.
        """
        self.in_burst()
        self._put_off.append((time.monotonic() + _BURST_SECONDS, action))

    def chore(self, action: Callable[[], None]) -> None:
        """Have the loop call ``action`` as :meth:`after_burst` does, though it takes its time.

        A part of these is done in each turn, which is more than the loop itself can bring.
        """
        self.in_burst()
        self._chores.append((time.monotonic() + _BURST_SECONDS, action))

    def end_bursts(self) -> None:
        """Call all that was put off. In the loop's thread, when it turns no more."""
        for waiting in (self._put_off, self._chores):
            _call_due(waiting, math.inf, len(waiting))

    @property
    def in_loop(self) -> bool:
        """Whether the thread that asks is the loop's."""
        return threading.get_ident() == self._thread

    def act(self) -> None:
        """Call what is wanted by now. In the loop's thread, which is the one that calls this."""
        self._thread = threading.get_ident()
        self._is_in_burst = bool(self._wanted)
        for actions in (self._wanted, self._quick):
            for _ in range(min(len(actions), _ACTIONS)):
                _call(actions.popleft())

    def ready(self, seconds: float) -> list[tuple[Any, int]]:
        """Return who is ready, and for what in poll's flags, after a wait of ``seconds`` at most."""
        while self._changed:
            member = self._changed.popleft()
            try:
                self._ask(member)
            except (OSError, KeyError, ValueError):
                # One that the system cannot wait for must not end the wait for all others.
                _log.exception("a socket cannot be waited for; a connection is closed for it")
                if not member.accepting:
                    member.handle_close()
        hurried = self._wanted or self._quick or self._put_off or self._chores
        found = self._selector.select(0 if hurried else seconds)
        return [(key.data, _FLAGS[events]) for key, events in found]

    def rest(self) -> None:
        """End a turn: begin with what was put off, unless this one was part of a burst.

        What has waited for its time begins in any case.
        """
        due = math.inf if not (self._is_in_burst or self._wanted) else time.monotonic()
        _call_due(self._put_off, due, len(self._put_off))
        _call_due(self._chores, due, 2 * _ACTIONS)

    def close(self) -> None:
        """Close every member, and the loop's own file."""
        wasyncore.close_all(self)
        self._selector.close()

    def _ask(self, member: Any) -> None:  # noqa: ANN401 - waitress' own
        """Ask a member what it waits for, unless it has left."""
        descriptor: int | None = getattr(member, "_fileno")  # noqa: B009 - not in the stubs
        if descriptor is None:
            return
        wanted = selectors.EVENT_READ if member.readable() else 0
        if member.writable() and not member.accepting:
            wanted |= selectors.EVENT_WRITE
        self._want(descriptor, member, wanted)

    def _want(self, descriptor: int, member: Any, wanted: int) -> None:  # noqa: ANN401 - as above
        known = self._selector.get_map().get(descriptor)
        if known is not None and known.data is not member and member is not None:
            self._selector.unregister(descriptor)
            known = None
        if known is None:
            if wanted:
                self._selector.register(descriptor, wanted, member)
        elif not wanted:
            self._selector.unregister(descriptor)
        elif known.events != wanted:
            self._selector.modify(descriptor, wanted, member)


def _call_due(waiting: deque[tuple[float, Callable[[], None]]], due: float, count: int) -> None:
    """Call so many at most of those whose time has come."""
    for _ in range(min(len(waiting), count)):
        if waiting[0][0] > due:
            break
        _call(waiting.popleft()[1])


def _call(action: Callable[[], None]) -> None:
    try:
        action()
    except Exception:  # noqa: BLE001 - the loop goes on
        _log.exception("what the loop was asked to do failed")


class Loop:
    """Runs in one thread, which alone adds members and lets them act."""

    def __init__(self, members: Members, servers: Sequence[wasyncore.dispatcher]) -> None:
        """Turn for ``members``; ``servers`` are asked before each wait, as they count on it."""
        self._members = members
        self._servers = servers
        self._asked_all_at = 0.0

    def turn(self, seconds: float) -> None:
        """Wait for ``seconds`` at most, and let those act that are ready."""
        members = self._members
        members.act()
        for server in self._servers:
            members.changed(server)
        now = time.monotonic()
        if now - self._asked_all_at >= _ASK_ALL_SECONDS:
            self._asked_all_at = now
            # The servers first, whose maintenance closes connections.
            for member in list(members.values()):
                members.changed(member)
        for member, flags in members.ready(seconds):
            # It may have been closed by one that acted before it.
            if getattr(member, "_fileno") is not None:  # noqa: B009 - not in the stubs
                wasyncore.readwrite(member, flags)
                members.changed(member)
        members.rest()
