"""The two processes of a running server."""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from support.served import Served

BODY = {"model": "starter", "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}


def _files(pid: int) -> str:
    """Return the names of all files that a process has mapped, its libraries among them."""
    return Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_server_process_never_loads_mlx(served: Served) -> None:
    """After an answer, MLX and what loads models are in the engine process alone."""
    request = urllib.request.Request(
        f"http://{served.address}/v1/chat/completions",
        data=json.dumps(BODY).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=15) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] == 4
    (engine,) = psutil.Process(served.pid).children()
    assert "/libmlx.so" in _files(engine.pid)
    for library in ("mlx", "numpy", "tokenizers", "safetensors"):
        assert f"/{library}/" not in _files(served.pid)


def test_the_server_process_is_small(served: Served) -> None:
    """The server process stays under 120 MB while it is idle."""
    assert psutil.Process(served.pid).memory_info().rss < 120e6
