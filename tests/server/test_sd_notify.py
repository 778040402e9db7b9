"""What a service manager hears: of a real process on a real socket, and when it hears nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from mlx_pharos.server.sd_notify import SdNotify

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[socket.socket]:
    """The service manager's end of the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(15)
        yield sock


def until(sock: socket.socket, wanted: str) -> list[str]:
    """Return the messages up to the first that holds a wanted line."""
    messages: list[str] = []
    while not any(wanted in message.splitlines() for message in messages):
        messages.append(sock.recv(4096).decode())
    return messages


def test_a_served_process_is_ready_turns_and_stops(
    heard: socket.socket, tiny_model: Path, tmp_path: Path
) -> None:
    """READY comes once the model is loaded, WATCHDOG again and again, STOPPING on SIGTERM."""
    variables = {
        "NOTIFY_SOCKET": heard.getsockname(),
        "WATCHDOG_USEC": "600000",
        "PHAROS_CACHE_DIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "mlx_pharos", "serve", "--model", str(tiny_model)]
    with subprocess.Popen(
        [*command, "--port", "0", "--served-model-name", "tiny"],
        env=os.environ | variables,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            before = until(heard, "READY=1")
            until(heard, "WATCHDOG=1")
            until(heard, "WATCHDOG=1")
            server.send_signal(signal.SIGTERM)
            last = until(heard, "STOPPING=1")[-1]
            assert 0 == server.wait(15)
        finally:
            server.kill()
    assert "STATUS=Loading the model." in before
    assert "STATUS=Serving 'tiny' at http://127.0.0.1:" in before[-1]
    assert "STATUS=Stopping; running requests get 25 s." in last


def test_a_stopped_process_is_silent(heard: socket.socket, tiny_model: Path) -> None:
    """No thread of its own vouches for a process whose loop stands still."""
    variables = {"NOTIFY_SOCKET": heard.getsockname(), "WATCHDOG_USEC": "300000"}
    command = [sys.executable, "-c", _LOOP_THAT_STANDS_STILL]
    with subprocess.Popen(
        command, env=os.environ | variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            until(heard, "WATCHDOG=1")
            port = int(server.stdout.readline())
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
                assert b"stands still\n" == server.stdout.readline()
            heard.setblocking(False)
            while _heard_something(heard):
                pass
            heard.settimeout(0.5)  # ten of its turns
            with pytest.raises(TimeoutError):
                heard.recv(4096)
        finally:
            server.kill()


def _heard_something(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(4096))
    except BlockingIOError:
        return False


_LOOP_THAT_STANDS_STILL = """
import os, sys, threading
from mlx_pharos.server.listener import Listener
from mlx_pharos.server.options import ServerOptions
from mlx_pharos.server.sd_notify import SdNotify
from mlx_pharos.server.shutdown import Shutdown

wanted = threading.Event()

def app(environ, start_response):
    wanted.set()
    start_response("204 No Content", [])
    return []

def turn():
    notify.turn()
    if wanted.is_set():
        print("stands still", flush=True)
        sys.stdin.read()

notify = SdNotify.of(os.environ)
listener = Listener(
    app, ServerOptions(("tiny",), port=0, max_batch=1, max_queue=1), Shutdown(),
    on_drain=lambda: None, on_turn=turn, turn_seconds=notify.turn_seconds,
)
print(listener.port, flush=True)
listener.run()
"""


def test_an_abstract_socket_is_reached() -> None:
    """A name after @ is a socket of Linux' that has no file."""
    if sys.platform != "linux":
        pytest.skip("only Linux has abstract sockets")
    name = f"pharos-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        sock.settimeout(5)
        SdNotify(f"@{name}").ready("Serving.")
        assert b"READY=1\nSTATUS=Serving." == sock.recv(4096)


def test_signs_of_life_are_sent_three_times_an_interval(heard: socket.socket) -> None:
    """However often the loop turns, and never without a watchdog."""
    now = 100.0
    notify = SdNotify(heard.getsockname(), watchdog_seconds=30, clock=lambda: now)
    for now in (100.0, 100.1, 109.9, 110.0, 119.9, 120.0):  # noqa: B007 - the clock reads it
        notify.turn()
    SdNotify(heard.getsockname()).turn()
    notify.status("The end.")
    messages = until(heard, "STATUS=The end.")
    assert ["WATCHDOG=1"] * 3 == messages[:-1]


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 10),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 10),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, float("inf")),
        ({"WATCHDOG_USEC": "soon"}, float("inf")),
        ({}, float("inf")),
    ],
)
def test_the_watchdog_is_that_of_this_process(variables: dict[str, str], seconds: float) -> None:
    """A child that inherits the variables does not speak for its parent."""
    notify = SdNotify.of({"NOTIFY_SOCKET": "/nowhere"} | variables, pid=7)
    assert seconds == notify.turn_seconds


def test_a_vanished_manager_costs_nothing_but_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The server goes on, and does not fill the log."""
    notify = SdNotify(str(tmp_path / "nobody"), watchdog_seconds=3, clock=iter(range(9)).__next__)
    for _ in range(3):
        notify.turn()
    assert ["the service manager cannot be told: No such file or directory"] == caplog.messages


def test_without_a_manager_nothing_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    """Most servers have none."""
    notify = SdNotify.of({})
    notify.ready("Serving.")
    notify.turn()
    notify.stopping("Stopping.")
    assert [] == caplog.messages
