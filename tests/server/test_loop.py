"""The I/O loop: what it costs, and that nobody in it is forgotten."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
from waitress import wasyncore

from mlx_pharos.server.channel import Channel
from mlx_pharos.server.loop import Loop, Members
from support.client import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.client import RunningServer


class Line(wasyncore.dispatcher):
    """One end of a connection, which keeps what it reads and says what it is told to."""

    def __init__(self, end: socket.socket, members: Members) -> None:
        super().__init__(end, map=members)
        self.connected = True
        self.heard = b""
        self.to_say = b""
        self.neighbour: Line | None = None

    def writable(self) -> bool:
        """Whether there is something to say."""
        return bool(self.to_say)

    def handle_write(self) -> None:
        """Say it."""
        self.send(self.to_say)
        self.to_say = b""

    def handle_read(self) -> None:
        """Keep what came, and close the neighbour if there is one."""
        self.heard += self.recv(100)
        if self.neighbour is not None:
            self.neighbour.close()


class Lines:
    """A loop with lines in it, and the other ends of those."""

    def __init__(self, ends: contextlib.ExitStack) -> None:
        self._ends = ends
        self.members = Members()
        self.loop = Loop(self.members, [])

    def line(self) -> tuple[Line, socket.socket]:
        """Return a new line and its other end."""
        here, there = socket.socketpair()
        there.settimeout(10)
        self._ends.enter_context(there)
        return Line(here, self.members), there


@pytest.fixture
def lines() -> Iterator[Lines]:
    """A loop of its own for the test."""
    with contextlib.ExitStack() as ends:
        found = Lines(ends)
        yield found
        found.members.close()


def test_idle_connections_cost_the_others_nothing(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside 100 idle connections a request has no more than a few connections asked."""
    asked = 0
    readable = Channel.readable

    def counted(channel: Channel) -> bool:
        nonlocal asked
        asked += 1
        return readable(channel)

    with contextlib.ExitStack() as idle:
        for _ in range(100):
            idle.enter_context(server.connect())
        wait_until(lambda: len(server.listener._members) > 100)
        monkeypatch.setattr(Channel, "readable", counted)
        begin = time.monotonic()
        for _ in range(100):
            assert 200 == server.get("/livez").status
        seconds = time.monotonic() - begin
    # 10 a request, where a loop that asks all at each of its turns comes to 300 or more; and once
    # a second all of them.
    assert asked < 100 * 10 + 150 * (seconds + 2)


def test_who_is_told_of_a_change_acts_at_once(lines: Lines) -> None:
    """What another thread gives a member to say is said as soon as the loop hears of it."""
    line, there = lines.line()
    bell, ring = lines.line()
    lines.loop.turn(0)

    def change() -> None:
        line.to_say = b"hello"
        lines.members.changed(line)
        ring.send(b"!")

    thread = threading.Thread(target=change)
    begin = time.monotonic()
    thread.start()
    while line.to_say or not bell.heard:
        lines.loop.turn(10)
    thread.join()
    assert time.monotonic() - begin < 5, "it was found by a look at all, and not told"
    assert there.recv(100) == b"hello"


def test_who_changed_in_silence_is_found_within_a_second(lines: Lines) -> None:
    """A change that the loop was not told of is late, and not lost."""
    line, there = lines.line()
    lines.loop.turn(0)
    line.to_say = b"hello"
    lines.loop.turn(0)
    begin = time.monotonic()
    while line.to_say and time.monotonic() - begin < 10:
        lines.loop.turn(0.05)
    assert there.recv(100) == b"hello"


def test_who_was_closed_by_another_does_not_act(lines: Lines) -> None:
    """Of two that are ready, the first closes the second, and another takes its descriptor."""
    first, one = lines.line()
    second, two = lines.line()
    first.neighbour, second.neighbour = second, first
    one.send(b"x")
    two.send(b"x")
    lines.loop.turn(10)
    assert first.heard + second.heard == b"x"
    assert len(lines.members) == 1
    third, three = lines.line()
    three.send(b"y")
    lines.loop.turn(10)
    assert third.heard == b"y"
