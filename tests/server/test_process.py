"""The server process: what it is made of, how it starts, and how it ends."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from mlx_pharos.server.options import ServerOptions
from support.client import CHAT, chat_body, events, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = Path(__file__).parents[1] / "support" / "serve_process.py"


@dataclass
class Process:
    """A running server process; its standard error is read line by line."""

    popen: subprocess.Popen[str]
    lines: list[str]
    port: int = 0
    begun: int = 0
    """Answers whose status and headers are here: of a stream, its first bytes."""

    def wait_line(self, pattern: str) -> re.Match[str]:
        """Wait for a line that holds the pattern."""
        found: list[re.Match[str]] = []

        def look() -> bool:
            found[:] = [m for line in list(self.lines) if (m := re.search(pattern, line))]
            return bool(found)

        wait_until(look, 15)
        return found[0]

    def request(self, method: str, path: str, body: object = None) -> tuple[int, bytes, Any]:
        """Send a request and read its answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=15)
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            self.begun += path == CHAT
            return response.status, response.read(), response.headers
        finally:
            connection.close()

    def in_flight(self) -> int:
        """Sequences that run or wait."""
        health = json.loads(self.request("GET", "/health")[1])
        return int(health["running"] + health["waiting"])

    def running(self) -> int:
        """Sequences that the engine works on."""
        return int(json.loads(self.request("GET", "/health")[1])["running"])


@contextlib.contextmanager
def started(model: Path, **settings: Any) -> Iterator[Process]:
    """Start a server process and read what it says in a thread; kill it at the end."""
    options = {"port": 0, "max_batch": 4, "max_queue": 8} | settings
    popen = subprocess.Popen(
        [sys.executable, "-P", str(SCRIPT), str(model), json.dumps(options)],
        stderr=subprocess.PIPE,
        text=True,
    )
    process = Process(popen, [])

    def read() -> None:
        assert popen.stderr
        for line in popen.stderr:
            process.lines.append(line)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield process
    finally:
        popen.kill()
        popen.wait()
        reader.join()
        if popen.stderr:
            popen.stderr.close()


@pytest.fixture
def process(tiny_model: Path, request: pytest.FixtureRequest) -> Iterator[Process]:
    """A ready server process with a grace of two seconds, or of as many as the test asks for."""
    with started(tiny_model, drain_seconds=getattr(request, "param", 2)) as made:
        made.port = int(made.wait_line(r"listens on http://127\.0\.0\.1:(\d+) ")[1])
        made.wait_line("is ready")
        yield made


def ask(process: Process, results: list[Any], **fields: Any) -> threading.Thread:
    """Ask in a thread; the status and body are appended to ``results``."""
    body = chat_body(**fields)
    thread = threading.Thread(
        target=lambda: results.append(process.request("POST", CHAT, body)[:2])
    )
    thread.start()
    return thread


def test_a_serving_process_holds_no_mlx_and_stays_small(process: Process) -> None:
    """Neither its modules nor its mapped files know MLX, and idle it is under 120 MB."""
    status, _, _ = process.request("POST", CHAT, chat_body(n=2, logprobs=True))
    assert 200 == status
    os.kill(process.popen.pid, signal.SIGUSR1)
    modules = process.wait_line("^modules: (.*)")[1].split()

    roots = {name.partition(".")[0] for name in modules}
    heavy = {"mlx", "mlx_lm", "numpy", "transformers", "tokenizers", "huggingface_hub", "torch"}
    assert "flask" in roots
    assert not roots & heavy
    assert not [name for name in modules if name.startswith("mlx_pharos.engine.worker")]
    server = psutil.Process(process.popen.pid)
    if sys.platform == "linux":
        maps = Path(f"/proc/{server.pid}/maps").read_text()
        assert not re.search(r"libmlx|openblas|numpy|tokenizers", maps)
    assert server.memory_info().rss < 120e6, server.memory_info()


@pytest.mark.parametrize("process", [25], indirect=True)
def test_sigterm_lets_running_requests_finish(process: Process) -> None:
    """What runs gets its whole answer; new work is refused meanwhile; the exit code is 0."""
    results: list[Any] = []
    threads = [ask(process, results, max_tokens=600, stream=stream) for stream in (False, True)]
    wait_until(lambda: process.in_flight() == 2)
    process.popen.terminate()
    wait_until(lambda: process.request("GET", "/readyz")[0] == 503)
    status, body, headers = process.request("POST", CHAT, chat_body())
    assert (503, "draining") == (status, json.loads(body)["error"]["code"])
    assert headers["Retry-After"]
    for thread in threads:
        thread.join()

    assert 0 == process.popen.wait(10)
    for status, body in results:
        assert 200 == status
        if body.startswith(b"data"):
            assert "length" == list(events(body))[-1]["choices"][0]["finish_reason"]
        else:
            assert 600 == json.loads(body)["usage"]["completion_tokens"]


@pytest.mark.parametrize(
    ("number", "signals"), [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGTERM, 2)]
)
def test_what_cannot_finish_ends_with_an_error(
    process: Process, number: signal.Signals, signals: int
) -> None:
    """After the grace, or at a second signal, requests end in words and the exit code is 0."""
    results: list[Any] = []
    threads = [ask(process, results, max_tokens=8000, stream=s) for s in (False, True)]
    # A stream that has not begun would end with a status, and who waits would be told `draining`.
    wait_until(lambda: process.running() == 2)
    wait_until(lambda: process.begun == 1)
    begin = time.monotonic()
    process.popen.send_signal(number)
    wait_until(lambda: process.request("GET", "/readyz")[0] == 503)
    if signals == 2:
        process.popen.send_signal(number)
    for thread in threads:
        thread.join()

    assert 0 == process.popen.wait(10)
    took = time.monotonic() - begin
    assert took < 2 if signals == 2 else 2 <= took < 5
    assert [200, 503] == sorted(status for status, _ in results)
    for status, body in results:
        error = json.loads(body) if status == 503 else list(events(body))[-1]
        assert "shutdown" == error["error"]["code"]


def test_an_idle_server_leaves_at_once(process: Process) -> None:
    """Idle connections do not keep it."""
    with socket.create_connection(("127.0.0.1", process.port)):
        begin = time.monotonic()
        process.popen.terminate()

        assert 0 == process.popen.wait(5)
        assert time.monotonic() - begin < 3


def test_a_taken_port_is_said_with_its_mend(tiny_model: Path) -> None:
    """The exit code is 2, and the message names the port and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with started(tiny_model, port=port) as process:
            assert 2 == process.popen.wait(15)
            assert f"Port {port} on 127.0.0.1 is taken" in process.wait_line("cannot start").string


def test_an_address_of_another_machine_is_said(tiny_model: Path) -> None:
    """The exit code is 2, and the message says what to use instead."""
    with started(tiny_model, host="192.0.2.7") as process:
        assert 2 == process.popen.wait(15)
        process.wait_line("192.0.2.7 is not an address of this machine")


def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path: Path) -> None:
    """The exit code is 1, and the reason is the engine's."""
    with started(tmp_path) as process:
        assert 1 == process.popen.wait(15)
        process.wait_line("Pharos cannot serve: .+")


def test_threads_are_enough_for_everything_that_is_admitted() -> None:
    """A refusal and a health check always find a thread, and a connection."""
    options = ServerOptions(("m",), max_batch=256, max_queue=100)

    assert options.thread_count > 356
    assert options.connection_count > options.thread_count
