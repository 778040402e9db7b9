"""The wall clock is set under load: an hour ahead, then an hour behind."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import json
import re
import socket
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from support.examination import Load
from support.planted import planted
from support.wall_clock import WallClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.examination import Examination
    from support.patient import Patient

_HEADER_SECONDS = 4
_FLAGS = ("--max-batch", "4", "--max-queue", "28", "--idle-timeout", "600")
_HOUR = 3600

pytestmark = pytest.mark.battery


class _Dripping:
    """A connection with half a request, which is to be cut in its time and not before."""

    def __init__(self, server: Patient) -> None:
        self._begin = time.monotonic()
        self._connection = socket.create_connection(("127.0.0.1", server.port), 30)
        self._connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: local")

    def close(self) -> None:
        self._connection.close()

    def is_open_or_due(self) -> bool:
        """Whether it is open, as it has to be until its time is over."""
        try:
            self._connection.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return time.monotonic() - self._begin >= _HEADER_SECONDS

    def wait_for_cut(self) -> None:
        """Read to the end; fails where none comes."""
        with contextlib.suppress(ConnectionResetError):
            while self._connection.recv(65536):
                pass


def _seconds_ahead(connection: http.client.HTTPConnection) -> float:
    """Return what the server's clock is ahead of ours, as its answers have it."""
    connection.request("GET", "/livez")
    response = connection.getresponse()
    response.read()
    assert 200 == response.status
    date = email.utils.parsedate_to_datetime(response.headers["Date"])
    return date.timestamp() - time.time()


def test_the_wall_clock_jumps(
    tiny_model: Path, examine: Callable[[Patient], Examination], tmp_path: Path
) -> None:
    """Nobody is cut for it, nobody is spared, and all durations are those that passed."""
    clock = WallClock(tmp_path / "clock")
    begin = time.monotonic()
    flags = (*_FLAGS, "--header-timeout", str(_HEADER_SECONDS))
    with planted(tiny_model, *flags, variables=clock.variables) as server:
        assert clock.is_clock_of(psutil.Process(server.pid))
        assert clock.is_clock_of(server.engine)
        examination = examine(server)
        asks = examination.draw(12, tokens=200)
        load = Load([])
        with contextlib.ExitStack() as stack:
            idle = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            stack.callback(idle.close)
            assert abs(_seconds_ahead(idle)) < _HOUR / 2
            idle.auto_open = 0  # the same connection, or an error
            for ahead in (_HOUR, -_HOUR):
                with examination.load(asks, held=True) as one:
                    dripping = stack.enter_context(contextlib.closing(_Dripping(server)))
                    one.wait_for_text(40)
                    clock.jump_to(ahead)
                    assert abs(_seconds_ahead(idle) - ahead) < _HOUR / 2
                    assert dripping.is_open_or_due()
                load.clients += one.clients
                dripping.wait_for_cut()
        examination.judge(load)
        elapsed = time.monotonic() - begin
        assert set() == {*_too_long(server.figures(), elapsed)}
        assert all(0 <= seconds <= elapsed for seconds in _logged_seconds(server))
    elapsed = time.monotonic() - begin
    assert server.collector is not None
    for span in server.collector.spans():
        assert 0 <= span.end_time_unix_nano - span.start_time_unix_nano <= elapsed * 1e9, span.name


def _too_long(figures: dict[str, float], elapsed: float) -> Iterator[str]:
    """Yield the histograms of seconds that have a duration which cannot be."""
    bounds: dict[tuple[str, str], dict[float, float]] = {}
    for sample, value in figures.items():
        if found := re.fullmatch(r"(\w+_seconds)_bucket\{(.*?),?le=\"(.+)\"\}", sample):
            bounds.setdefault((found[1], found[2]), {})[float(found[3])] = value
        elif "_seconds_sum" in sample and value < 0:
            yield sample
    assert bounds
    for series, counts in bounds.items():
        first = min(bound for bound in counts if bound >= elapsed)
        if counts[first] != counts[float("inf")]:
            yield str(series)


def _logged_seconds(server: Patient) -> Iterator[float]:
    """Yield all durations of the access log."""
    lines = [json.loads(line) for line in [*server.log] if "mlx_pharos.requests" in line]
    assert lines
    for line in lines:
        yield from (value for name, value in line.items() if name.endswith("_seconds"))
