"""The I/O loop: what it costs, and that nobody in it is forgotten."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from waitress import wasyncore

from mlx_pharos.server.channel import Channel
from mlx_pharos.server.loop import _ACTIONS, _BURST_SECONDS, Loop, Members
from mlx_pharos.server.output import UNREAD_STREAM
from support.client import CHAT, chat_body, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

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


def _asking(lines: Lines, begun: list[int], count: int) -> list[socket.socket]:
    """Return the other ends of lines that each put something off when they are spoken to."""

    def ask(line: Line, number: int) -> None:
        line.heard += line.recv(100)
        lines.members.after_burst(lambda: begun.append(number))

    ends = []
    for number in range(count):
        line, there = lines.line()
        line.handle_read = partial(ask, line, number)  # type: ignore[method-assign]
        ends.append(there)
    lines.loop.turn(0)
    return ends


def test_what_can_wait_for_the_end_of_a_burst_waits(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins, in its order, with the first turn that brings no more, and that does not wait."""
    monkeypatch.setattr("mlx_pharos.server.loop.time.monotonic", lambda: 7.0)
    begun: list[int] = []
    for number, there in enumerate(_asking(lines, begun, 3)):
        there.send(b"!")
        lines.loop.turn(10)
        assert [] == begun, number
    begin = time.perf_counter()
    lines.loop.turn(30)
    assert [0, 1, 2] == begun
    assert time.perf_counter() - begin < 15


def test_what_was_put_off_holds_up_nobody_either(lines: Lines) -> None:
    """Of chores the loop does a part in each turn."""
    done: list[int] = []
    for number in range(4 * _ACTIONS):
        lines.members.chore(partial(done.append, number))
    for turn in range(1, 3):
        lines.loop.turn(10)
        assert list(range(2 * turn * _ACTIONS)) == done


def test_in_a_flood_that_lasts_nothing_waits_longer_and_longer(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many refusals as a turn can have, each with a chore, without end: what has a place begins
    when its time is over, and no chore waits for more than those of that time.
    """
    now = time.monotonic()
    monkeypatch.setattr("mlx_pharos.server.loop.time.monotonic", lambda: now)
    begun: list[float] = []
    done: list[float] = []

    def note(waits: list[float], since: float) -> None:
        waits.append(now - since)

    def refuse() -> None:
        lines.members.later(refuse)
        lines.members.chore(partial(note, done, now))

    for _ in range(2 * _ACTIONS):
        lines.members.later(refuse)
    turn_seconds = _BURST_SECONDS / 5
    for _ in range(200):
        lines.members.after_burst(partial(note, begun, now))
        now += turn_seconds
        lines.loop.turn(10)
    longest = _BURST_SECONDS + 1.01 * turn_seconds
    assert len(begun) > 190
    assert max(begun) <= longest
    assert len(done) > 190 * _ACTIONS
    assert max(done) <= longest


def test_a_burst_that_does_not_end_holds_up_nothing(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was put off begins after its time, and not before, though each turn brings more."""
    now = time.monotonic()
    monkeypatch.setattr("mlx_pharos.server.loop.time.monotonic", lambda: now)
    begun: list[int] = []
    ends = _asking(lines, begun, 4)
    for there in ends[:2]:
        there.send(b"!")
        lines.loop.turn(10)
    now += _BURST_SECONDS - 0.001
    ends[2].send(b"!")
    lines.loop.turn(10)
    assert [] == begun
    now += 0.002
    ends[3].send(b"!")
    lines.loop.turn(10)
    assert [0, 1] == begun
    lines.members.end_bursts()
    assert [0, 1, 2, 3] == begun


def test_what_the_loop_is_asked_to_do_holds_up_nobody(lines: Lines) -> None:
    """Actions that want others, without end, are done between what happens at the sockets."""
    line, there = lines.line()
    done = 0

    def again() -> None:
        nonlocal done
        done += 1
        lines.members.later(again)

    for _ in range(200):
        lines.members.later(again)
    there.send(b"hello")
    begin = time.monotonic()
    for _ in range(5):
        lines.loop.turn(10)
    assert time.monotonic() - begin < 5, "it waited with something to do"
    assert line.heard == b"hello"
    assert 200 <= done <= 500


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


def test_one_that_cannot_be_waited_for_ends_alone(
    lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    """A descriptor that the system does not know any more ends its member, and not the loop."""
    lost, _ = lines.line()
    here, there = lines.line()
    assert lost.socket is not None
    descriptor = lost.socket.detach()
    os.close(descriptor)
    lost.handle_close = lost.close  # type: ignore[method-assign]
    there.send(b"hello")
    lines.loop.turn(10)
    assert here.heard == b"hello"
    assert list(lines.members.values()) == [here]
    assert "cannot be waited for" in caplog.text


def test_another_thread_does_not_close_a_connection_under_the_loop(server: RunningServer) -> None:
    """Where a thread that answers finds that a send fails, the loop closes, and serves on till then."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=15)
    with contextlib.closing(connection):
        connection.request("GET", "/livez")
        assert connection.getresponse().read()
        _channel_of(server, connection).handle_close()
        connection.request("GET", "/livez")
        assert 200 == connection.getresponse().status


def test_who_is_idle_for_too_long_is_closed_before_more_is_read_of_it(
    tiny_model: Path, serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The maintenance says at once whom it closes, and leaves it to no look at all."""
    with serving(tiny_model, ready=False) as server, server.connect() as connection:
        (listening,) = server.listener._servers
        wait_until(lambda: len(listening._channels()) == 1)
        wait_until(lambda: server.listener._loop._asked_all_at > 0)
        monkeypatch.setattr("mlx_pharos.server.loop._ASK_ALL_SECONDS", 1000.0)
        listening.later(lambda: listening.maintenance(time.monotonic() + 1000))
        connection.settimeout(10)
        assert b"" == connection.recv(100)


def test_a_stream_that_waits_for_its_reader_is_sent_on_at_once(
    tiny_model: Path, serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who writes more than may wait is woken by the loop, and not by a look at all."""
    monkeypatch.setattr("mlx_pharos.server.listener.UNREAD_STREAM", 4096)
    with serving(tiny_model) as server:
        server.chat()
        monkeypatch.setattr("mlx_pharos.server.loop._ASK_ALL_SECONDS", 1000.0)
        body = chat_body(max_tokens=200, stream=True, logprobs=True, top_logprobs=20)
        with server.send(CHAT, **body) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(20)
            received = 0
            ending = b""
            while b"[DONE]" not in ending:
                data = connection.recv(65536)
                assert data, "the server closed in the middle"
                received += len(data)
                ending = (ending + data)[-100:]
        assert received > 100_000


def test_the_loop_sends_for_one_who_waits_for_it(server: RunningServer) -> None:
    """What is being written is left to who writes it, unless it is so much that he waits."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=15)
    with contextlib.closing(connection):
        connection.request("GET", "/livez")
        assert connection.getresponse().read()
        channel = _channel_of(server, connection)
        with ThreadPoolExecutor(1) as loop, channel.outbuf_lock:
            for unsent, waits in ((0, False), (1, False), (UNREAD_STREAM + 1, True)):
                channel.total_outbufs_len = unsent
                assert waits is loop.submit(channel.waits_to_send).result(10)
            channel.total_outbufs_len = 0


def _channel_of(server: RunningServer, connection: http.client.HTTPConnection) -> Channel:
    (found,) = (
        each
        for each in list(server.listener._members.values())
        if getattr(each, "addr", None) == connection.sock.getsockname()
    )
    assert isinstance(found, Channel)
    return found
