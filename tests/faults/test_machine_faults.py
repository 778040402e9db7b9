"""Faults of the machine and of what is beside the server: files run out, the collector hangs."""

from __future__ import annotations

import contextlib
import resource
import socket
from typing import TYPE_CHECKING

import psutil
import pytest

from support.asks import CHAT, Ask, large_body
from support.planted import planted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.examination import Examination
    from support.patient import Patient

_NARROW = ("--max-batch", "4", "--max-queue", "28")
"""Its answer has almost 2 MB."""

pytestmark = pytest.mark.battery


def test_files_run_out(tiny_model: Path, examine: Callable[[Patient], Examination]) -> None:
    """No file descriptor is left for newcomers; those who are inside are served, and it passes."""
    with planted(tiny_model, *_NARROW) as server:
        examination = examine(server)
        asks = examination.draw(10, tokens=400)
        process = psutil.Process(server.pid)
        before = process.rlimit(resource.RLIMIT_NOFILE)
        with (
            contextlib.ExitStack() as stack,
            examination.load(asks, probe=False, held=True) as load,
        ):
            load.wait_for_text(20)
            process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds() + 2, before[1]))
            for _ in range(30):  # the kernel takes them, the server cannot
                connection = socket.create_connection(("127.0.0.1", server.port), 10)
                stack.callback(connection.close)
        process.rlimit(resource.RLIMIT_NOFILE, before)
        examination.judge(load)


@pytest.mark.parametrize("answers", [False, True], ids=["silent", "gone"])
def test_the_collector_fails(
    tiny_model: Path, examine: Callable[[Patient], Examination], *, answers: bool
) -> None:
    """A collector that takes connections and says nothing, or that is not there."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        if answers:
            silent.close()
        with planted(tiny_model, *_NARROW, "--otlp-endpoint", address) as server:
            examination = examine(server)
            asks = examination.draw(10)
            with examination.load(asks) as load:
                pass
            examination.judge(load)


def test_no_file_can_be_written(
    tiny_model: Path, examine: Callable[[Patient], Examination]
) -> None:
    """The disk is full: large bodies are refused in words or served; small ones are served, and
    answers of megabytes come whole.
    """
    with planted(tiny_model, *_NARROW) as server:
        examination = examine(server)
        asks = examination.draw(10)
        asks += [
            Ask(CHAT, large_body(n=4, max_tokens=400, stream=stream)) for stream in (False, True)
        ]
        process = psutil.Process(server.pid)
        before = process.rlimit(resource.RLIMIT_FSIZE)
        process.rlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        with examination.load(asks) as load:
            large = examination.send_raw(b" " * 3_000_000)
        process.rlimit(resource.RLIMIT_FSIZE, before)
        if large.split()[1] == b"503":
            examination.sent_besides(-1)  # refused before a route could count it
        assert large.split()[1] in {b"400", b"413", b"503", b"507"}, large[:200]
        assert [["length"]] * 8 == [
            end for reply in load.replies[-2:] for end in reply.finishes.values()
        ]
        assert "client_left" not in "".join(server.log)
        examination.judge(load)
