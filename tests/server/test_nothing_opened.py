"""No request makes the server or its engine open a file, a connection or a process."""

from __future__ import annotations

import http.client
import json
import os
import socket
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from support.served import Served, serve_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SITE = """
import os, sys
_LOG = os.open(os.environ["AUDIT_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
_SORTS = ("open", "os.", "socket.", "subprocess.", "shutil.", "tempfile.", "glob.", "pathlib.",
    "urllib.", "http.", "ftplib.", "smtplib.", "ctypes.dlopen", "import", "exec", "compile")
def _hear(event, args):
    if event.startswith(_SORTS) and event not in ("os.putenv", "os.unsetenv", "socket.__new__"):
        os.write(_LOG, f"{os.getpid()} {event} {[each for each in args[:2] if isinstance(each, (str, bytes))]}\\n".encode())
sys.addaudithook(_hear)
"""
"""Python runs it first of all in every process; the interpreter itself then tells what is opened."""
_MEASURED = ("/proc/", "/sys/fs/cgroup/")
"""What the server reads to measure its memory, whoever asks."""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes write what they open."""
    return tmp_path_factory.mktemp("audit") / "log"


@pytest.fixture(scope="module")
def audited(tiny_model: Path, log: Path) -> Iterator[Served]:
    """A server that has answered each kind of request once, so that nothing is loaded late."""
    (log.parent / "sitecustomize.py").write_text(_SITE)
    path = os.pathsep.join([str(log.parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    variables = {"PYTHONPATH": path, "AUDIT_LOG": str(log), "PHAROS_CACHE_DIR": str(log.parent)}
    with serve_model(tiny_model, "--served-model-name", "tiny", variables=variables) as served:
        _chat(served, "warm", max_tokens=4, stream=True)
        _chat(served, "warm", max_tokens=4, logprobs=True, seed=1)
        _chat(served, "warm", temperature="hot")
        _send(served, "POST", "/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 2})
        for route in ("/metrics", "/v1/metrics", "/health", "/v1/models", "/openapi.json", "/none"):
            _send(served, "GET", route)
        yield served


def _send(served: Served, method: str, path: str, body: object = None, **headers: str) -> int:
    connection = http.client.HTTPConnection(served.address, timeout=15)
    try:
        kind = {} if body is None else {"Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), kind | headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def _chat(served: Served, content: object, **fields: Any) -> int:
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 4}
    return _send(served, "POST", "/v1/chat/completions", body | fields)


def _opened(log: Path, since: int) -> list[str]:
    lines = log.read_text()[since:].splitlines()
    return [line for line in lines if not any(place in line for place in _MEASURED)]


def test_both_processes_are_heard(audited: Served, log: Path) -> None:
    """So silence means something: of the engine while it loads, of the server while it answers too.

    A large body is what the server opens a file for: a temporary one.
    """
    (engine,) = psutil.Process(audited.pid).children()
    assert f"{engine.pid} open" in log.read_text()
    since = len(log.read_text())
    assert 400 == _chat(audited, "a" * 1_000_000)
    opened = _opened(log, since)
    assert opened
    assert all(line.startswith(f"{audited.pid} ") for line in opened)


def test_a_request_opens_nothing(audited: Served, log: Path) -> None:
    """Names, addresses and paths in bodies, paths and headers stay words."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/x"
        since = len(log.read_text())
        for name in ("../../etc/passwd", "/etc/passwd", "mlx-community/x", f"hf://{url}", url):
            assert 404 == _chat(audited, "hi", model=name)
            _send(audited, "GET", f"/v1/models/{name}")
        for path in ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/static/x", "//etc/passwd"):
            assert 404 == _send(audited, "GET", path)
        for field in ("adapter", "adapters", "draft_model", "chat_template", "lora_path", "file"):
            _chat(audited, "hi", **{field: url})
            _chat(audited, "hi", **{field: "/etc/passwd"})
        for part in ("image_url", "input_audio", "file"):
            _chat(audited, [{"type": part, part: {"url": url, "data": "/etc/passwd"}}])
        assert 200 == _chat(
            audited, f"read {url} and file:///etc/passwd, {{% include '/etc/passwd' %}}"
        )
        header = {"X-Forwarded-For": url, "Referer": url, "Forwarded": f"for={url}", "Via": url}
        assert 200 == _send(audited, "GET", "/v1/models", **header)
        assert [] == _opened(log, since)
        with pytest.raises(BlockingIOError):
            trap.accept()
