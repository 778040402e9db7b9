"""The two processes of a running server."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from support.served import serve_model

if TYPE_CHECKING:
    from support.served import Served

_SITE = """
import gc, os
_LOG = os.open(os.environ["GC_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def _hear(phase, info):
    if phase == "stop" and gc.get_freeze_count():
        os.write(_LOG, f"{os.getpid()}\\n".encode())
gc.callbacks.append(_hear)
"""
"""Python runs it first of all in every process: it tells who collects garbage beside what is frozen."""
BODY = {"model": "starter", "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}


def _files(pid: int) -> str:
    """Return the names of all files that a process has mapped, its libraries among them."""
    return Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")


def _ask(served: Served) -> int:
    """Return the tokens of an answer."""
    request = urllib.request.Request(
        f"http://{served.address}/v1/chat/completions",
        data=json.dumps(BODY).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=15) as answer:
        tokens: int = json.load(answer)["usage"]["completion_tokens"]
        return tokens


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_server_process_never_loads_mlx(served: Served) -> None:
    """After an answer, MLX and what loads models are in the engine process alone."""
    assert 4 == _ask(served)
    (engine,) = psutil.Process(served.pid).children()
    assert "/libmlx.so" in _files(engine.pid)
    for library in ("mlx", "numpy", "tokenizers", "safetensors"):
        assert f"/{library}/" not in _files(served.pid)


def test_the_server_process_is_small(served: Served) -> None:
    """The server process stays under 120 MB while it is idle."""
    assert psutil.Process(served.pid).memory_info().rss < 120e6


def test_garbage_is_collected_but_what_was_loaded_is_left_alone(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Both processes collect while they serve, the engine too, which does not while it loads."""
    (tmp_path / "sitecustomize.py").write_text(_SITE)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    log = tmp_path / "log"
    variables = {"PYTHONPATH": path, "GC_LOG": str(log)}
    with serve_model(tiny_model, "--served-model-name", "starter", variables=variables) as served:
        (engine,) = psutil.Process(served.pid).children()
        for _ in range(100):
            _ask(served)
            if {str(served.pid), str(engine.pid)} <= set(log.read_text().split()):
                return
    pytest.fail("one of them collects nothing, or has frozen nothing")
