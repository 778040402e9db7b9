"""A served process that faults are done to: ``pharos serve``, its engine, its log, its figures."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from support.collector import Collector

__all__ = ["Patient", "patient", "run_to_end"]

_READY_SECONDS = 60.0
_LOG_LINES = 20_000
_PHAROS = (sys.executable, "-m", "mlx_pharos")


class Patient:
    """A running server that stands a lot. Its figures are read as a client reads them."""

    def __init__(self, process: subprocess.Popen[str], log: deque[str], key: str) -> None:
        self._process = process
        self.log = log
        self.key = key
        self.port = 0
        self.secrets = [key]
        """What nobody may hear of."""
        self.leaks: list[str] = []
        """Beginnings of answers that held a secret."""
        self.collector: Collector | None = None
        """What takes its telemetry, where the test can look into it."""
        self.sent = 0
        """Generation requests that it was sent, those that were refused included."""

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    @property
    def engine(self) -> psutil.Process:
        """The engine's process, as it is now."""
        found = self.find_engine()
        assert found is not None, "there is no engine"
        return found

    def find_engine(self) -> psutil.Process | None:
        """Return the engine's process; None where there is none."""
        children = psutil.Process(self.pid).children()
        ours = (each for each in children if "mlx_pharos.engine.worker" in _command(each))
        return next(ours, None)

    @property
    def is_running(self) -> bool:
        """Whether the server's process has not ended."""
        return self._process.poll() is None

    @property
    def was_killed(self) -> bool:
        """Whether the server got no chance to say its last words."""
        return self._process.returncode == -signal.SIGKILL

    def hear(self, data: bytes) -> None:
        """Search what came from the server, whatever it is. Safe from any thread."""
        self.leaks += [data[:200].decode() for each in self.secrets if each.encode() in data]

    @property
    def headers(self) -> dict[str, str]:
        """What a client has to send."""
        return {"Authorization": f"Bearer {self.key}"}

    def get(self, path: str, timeout: float = 10.0) -> tuple[int, bytes]:
        """GET a path; return status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("GET", path, headers=self.headers)
            response = connection.getresponse()
            body = response.read()
            self.hear(str(response.headers).encode() + body)
            return response.status, body
        finally:
            connection.close()

    def health(self) -> dict[str, Any]:
        """Return the health report."""
        report: dict[str, Any] = json.loads(self.get("/health")[1])
        return report

    def figures(self) -> dict[str, float]:
        """Return the samples of a scrape by their names, with the labels as they are written."""
        samples = {}
        for line in self.get("/metrics")[1].decode().splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                samples[name] = float(value)
        return samples

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of a metric over its labels, or over the series that have these."""
        wanted = {f'{label}="{value}"' for label, value in labels.items()}
        return sum(
            value
            for sample, value in self.figures().items()
            if sample.partition("{")[0] == name
            and wanted <= {*sample.partition("{")[2].rstrip("}").split(",")}
        )

    def steps_above(self, sequences: int) -> float:
        """Return how many steps of engines had more sequences than that, a bound of the histogram."""
        name, figures = "pharos_engine_batch_size", self.figures()
        within = figures.get(f'{name}_bucket{{le="{sequences:.1f}"}}', 0.0)
        return figures.get(f"{name}_count", 0.0) - within

    def send_signal(self, number: signal.Signals) -> None:
        """Signal the server."""
        self._process.send_signal(number)

    def wait(self, timeout: float) -> int:
        """Wait for the server's end; return its exit code."""
        return self._process.wait(timeout)

    def wait_for(self, condition: Callable[[], bool], what: str, timeout: float = 30.0) -> None:
        """Wait for something to become true; say what did not."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {timeout:g} s"
            time.sleep(0.02)

    def wait_restarted(self, times: int) -> None:
        """Wait until another engine was started so often; it may still load the model."""
        self.wait_for(lambda: self.health()["engine"]["restarts"] == times, "a restart")

    def wait_ready(self) -> None:
        """Wait until the server says that it is ready."""
        self.wait_for(lambda: self.get("/readyz")[0] == 200, "ready again", _READY_SECONDS)

    def wait_idle(self) -> None:
        """Wait until no request is anywhere in the server or its engine."""

        def idle() -> bool:
            report = self.health()
            figures = self.figures()
            # The scrape itself is a request that is active.
            active = sum(v for k, v in figures.items() if k.startswith("http_server_active"))
            return report["running"] == report["waiting"] == 0 and active <= 1

        self.wait_for(idle, "idle")


@contextlib.contextmanager
def patient(
    model: Path | str,
    *flags: str,
    variables: Mapping[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
) -> Iterator[Patient]:
    """Serve a model until the block ends, however the server is by then.

    Args:
        model: A directory, or a name.
        flags: Of ``pharos serve``.
        variables: More environment.
        prepare: Called in the new process before it runs, to set limits.
    """
    key = "sk-planted-" + os.urandom(8).hex()
    environment = os.environ | {"PHAROS_API_KEY": key, "PHAROS_METRICS_API_KEY": key}
    environment |= variables or {}
    command = [*_PHAROS, "serve", "--model", str(model), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--served-model-name", "tiny", "--log-format", "json", *flags],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=prepare,  # noqa: PLW1509 - no other thread holds a lock that it needs
    )
    log: deque[str] = deque(maxlen=_LOG_LINES)
    assert process.stderr is not None
    reader = threading.Thread(target=log.extend, args=(process.stderr,), daemon=True)
    reader.start()
    server = Patient(process, log, key)
    try:
        _wait_for_address(server, process)
        server.wait_ready()
        yield server
    finally:
        _end(process)
        reader.join(5)
        process.stderr.close()


def run_to_end(
    *command: str,
    variables: Mapping[str, str],
    prepare: Callable[[], None] | None = None,
) -> tuple[int, str]:
    """Run a command of ``pharos`` that ends by itself; return its exit code and all that it wrote.

    Args:
        command: With its flags.
        variables: More environment.
        prepare: Called in the new process before it runs, to set limits.
    """
    done = subprocess.run(
        [*_PHAROS, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | variables,
        timeout=_READY_SECONDS,
        check=False,
        preexec_fn=prepare,
    )
    return done.returncode, done.stdout


def _wait_for_address(server: Patient, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while not server.port:
        assert process.poll() is None, list(server.log)[-20:]
        assert time.monotonic() < deadline
        for line in [*server.log]:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                server.port = int(found[1])
        time.sleep(0.02)


def _end(process: subprocess.Popen[str]) -> None:
    """End the server, and its engine with it."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []
