"""Servers under measurement: started on loopback, stopped by their process id."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "ServerProcess",
    "helper",
    "mlx_lm_command",
    "mlx_lm_openblas_command",
    "pharos_command",
    "running",
]

_START_SECONDS = 120.0


@dataclass
class ServerProcess:
    """A running server."""

    port: int
    model: str
    """The name that requests use."""
    process: subprocess.Popen[bytes]
    first_answer: float
    """Seconds from the start of the process to its first generated token."""

    @property
    def resident_bytes(self) -> int:
        """Resident set of the process that answers HTTP."""
        return int(psutil.Process(self.process.pid).memory_info().rss)


def pharos_command(model: Path | str, port: int, *arguments: str) -> list[str]:
    """Return how our server is started."""
    return [
        *(sys.executable, "-m", "mlx_pharos", "serve", "--model", str(model)),
        *("--served-model-name", "bench", "--port", str(port), "--log-level", "warning"),
        *arguments,
    ]


def mlx_lm_command(model: Path | str, port: int, *arguments: str) -> list[str]:
    """Return how mlx-lm's own server is started, as its users do."""
    return [sys.executable, "-m", "mlx_lm", "server", *_mlx_lm_arguments(model, port), *arguments]


def mlx_lm_openblas_command(model: Path | str, port: int, *arguments: str) -> list[str]:
    """Return how mlx-lm's own server is started with the BLAS that our engine finds by itself.

    What is left to compare is then the servers and not the matrix products.
    """
    start = (
        "import runpy, sys; from mlx_pharos.engine.models.blas import preload; preload('auto'); "
        "sys.argv[0] = 'mlx_lm.server'; runpy.run_module('mlx_lm.server', run_name='__main__')"
    )
    return [sys.executable, "-c", start, *_mlx_lm_arguments(model, port), *arguments]


def _mlx_lm_arguments(model: Path | str, port: int) -> list[str]:
    return ["--model", str(model), "--port", str(port), "--log-level", "ERROR"]


def free_port() -> int:
    """Return a port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def helper(module: str, *arguments: str) -> Iterator[int]:
    """Run a module of ours that prints its port and serves; the context's value is the port."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def running(
    make_command: object,
    model: Path | str,
    name: str,
    *arguments: str,
    variables: Mapping[str, str] | None = None,
) -> Iterator[ServerProcess]:
    """Start a server, wait for its first answer, and stop it at the end.

    Args:
        make_command: Returns the command line for a model, a port and further arguments.
        model: What it serves.
        name: What requests call the model.
        arguments: Further ones.
        variables: Added to the environment.
    """
    assert callable(make_command)
    port = free_port()
    begin = time.monotonic()
    process = subprocess.Popen(
        make_command(model, port, *arguments),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | dict(variables or {}),
    )
    try:
        _wait_for_answer(process, port, name, begin + _START_SECONDS)
        yield ServerProcess(port, name, process, time.monotonic() - begin)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_answer(
    process: subprocess.Popen[bytes], port: int, model: str, deadline: float
) -> None:
    while time.monotonic() < deadline:
        if process.poll() is not None:
            message = f"{process.args!r} ended with {process.returncode}"
            raise RuntimeError(message)
        if _listens(port) and _answers(port, model):
            return
        time.sleep(0.01)
    message = f"{process.args!r} did not answer in time"
    raise RuntimeError(message)


def _listens(port: int) -> bool:
    """Return whether a request makes sense: somebody listens, and does not say "not ready".

    mlx-lm's server has no /readyz and answers it with 404, which counts as ready.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status != http.HTTPStatus.SERVICE_UNAVAILABLE
    except OSError:
        return False
    finally:
        connection.close()


def _answers(port: int, model: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}
    try:
        connection.request(
            "POST",
            "/v1/chat/completions",
            json.dumps(body),
            {"Content-Type": "application/json"},
        )
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()
