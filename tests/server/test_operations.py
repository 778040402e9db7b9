"""The second listener: it answers operations however busy the first one is, and nothing else."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from http.client import HTTPConnection
from typing import TYPE_CHECKING

import pytest

from support import serve_process
from support.client import CHAT, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def addresses(tiny_model: Path) -> Iterator[tuple[str, str]]:
    """The addresses of both listeners of a server with few connections."""
    settings = {"port": 0, "operations_port": 0, "max_batch": 1, "max_queue": 1}
    settings["connection_limit"] = 16
    command = [sys.executable, str(serve_process.__file__), str(tiny_model), json.dumps(settings)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            operations, main = "", ""
            for line in process.stderr:
                found = re.search(r"http://([\d.]+:\d+)", line)
                if "operations" in line and found:
                    operations = found[1]
                elif "is ready" in line and found:
                    main = found[1]
                    break
            yield main, operations
        finally:
            os.kill(process.pid, signal.SIGTERM)
            process.communicate(timeout=15)
    assert 0 == process.returncode


def get(address: str, path: str) -> tuple[int, bytes]:
    """GET a path."""
    connection = HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/metrics", "/v1/metrics"])
def test_operations_are_on_both(addresses: tuple[str, str], path: str) -> None:
    """The main port keeps them: who has only one is not cut off."""
    for address in addresses:
        assert 200 == get(address, path)[0]


@pytest.mark.parametrize("path", ["/v1/models", "/openapi.json", CHAT, "/"])
def test_the_api_is_on_the_main_port_alone(addresses: tuple[str, str], path: str) -> None:
    """The second listener knows no other route."""
    status, body = get(addresses[1], path)

    assert (404, "route_not_found") == (status, json.loads(body)["error"]["code"])


def test_a_first_listener_that_is_full_does_not_make_the_second_one_deaf(
    addresses: tuple[str, str],
) -> None:
    """With the first one's connections all taken, probes of the second are answered."""
    host, _, port = addresses[0].partition(":")
    held = [socket.create_connection((host, int(port)), timeout=10) for _ in range(60)]
    for _ in range(5):
        assert 200 == get(addresses[1], "/livez")[0]
    for connection in held:
        connection.close()
    wait_until(lambda: get(addresses[0], "/livez")[0] == 200)
