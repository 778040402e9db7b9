"""The log has a reader that stops: nobody waits for it, and what it missed is said."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import logging
import os
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from mlx_pharos.telemetry import log_writer
from mlx_pharos.telemetry.log_writer import LogWriter
from support.client import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MORE_THAN_THREADS = 400
"""Requests: each would keep a thread that waits for the reader of its line."""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe that holds a page: where it is read, and where it is written to."""
    reading, writing = os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    yield reading, writing
    os.close(reading)


def _read(reading: int, last: bytes) -> bytes:
    data = b""
    while last not in data:
        data += os.read(reading, 65536)
    return data


def test_lines_come_whole_and_in_order(pipe: tuple[int, int]) -> None:
    """From several threads, through a pipe that takes less than a line at a time."""
    reading, writing = pipe
    log = LogWriter(writing)

    def write(name: str) -> None:
        for number in range(50):
            log.write(f"{name} {number} {'é' * 3000}\n")

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    received = b""
    while received.count(b"\n") < 100:
        received += os.read(reading, 65536)
    for thread in threads:
        thread.join()
    lines = received.decode().splitlines()
    for name in "ab":
        mine = [line for line in lines if line.startswith(name)]
        assert [f"{name} {number} {'é' * 3000}" for number in range(50)] == mine
    log.finish(10)


def test_a_reader_that_stops_is_not_waited_for(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Lines beyond what may wait are lost and counted; with the reader back, all goes on."""
    reading, writing = pipe
    monkeypatch.setattr(log_writer, "_MOST_BYTES", 100_000)
    log = LogWriter(writing)
    for _ in range(250):
        log.write("x" * 999 + "\n")
    log.finish(0.01)  # does not wait for ever, either
    with caplog.at_level(logging.WARNING):
        received = os.read(reading, 4096)
        wait_until(lambda: bool(caplog.messages))
        log.write("again\n")
        received += _read(reading, b"again\n")
    (lost,) = caplog.messages
    assert lost.endswith(" lines of the log are lost: nobody read them in time")
    whole, again = divmod(len(received), 1000)
    assert (250 - int(lost.split()[0]), len("again\n")) == (whole, again)


@pytest.mark.skipif(not hasattr(fcntl, "F_SETPIPE_SZ"), reason="Linux")
def test_a_server_serves_without_a_reader_of_its_log(tiny_model: Path) -> None:
    """Somebody pressed Ctrl-S: all are answered, SIGTERM ends it well, and the lines come later."""
    command = [sys.executable, "-m", "mlx_pharos", "serve", "--model", str(tiny_model)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--log-format", "json"], stderr=subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
        begun = _read(process.stderr.fileno(), b"loads the model").decode()
        address = begun.partition("http://")[2].split()[0]
        for _ in range(_MORE_THAN_THREADS):
            connection = http.client.HTTPConnection(address, timeout=15)
            with contextlib.closing(connection):
                connection.request("GET", "/livez")
                assert 200 == connection.getresponse().status
        process.terminate()
        wait_until(lambda: not _listens(address), timeout=15)
        _, rest = process.communicate(timeout=15)
        assert 0 == process.returncode
        assert _MORE_THAN_THREADS == (begun.encode() + rest).count(b'"route":"/livez"')
    finally:
        process.kill()
        process.wait()


def _listens(address: str) -> bool:
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def test_a_reader_that_left_is_no_error(pipe: tuple[int, int]) -> None:
    """Its lines are dropped."""
    reading, writing = pipe
    log = LogWriter(writing)
    os.dup2(os.open(os.devnull, os.O_RDONLY), reading)
    log.write("to nobody\n")
    log.finish(10)
    log.write("nor to anybody else\n")
    log.finish(10)
