"""``pharos serve`` in a process of its own, as a person runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

__all__ = ["Served", "serve_model"]


class Served(NamedTuple):
    """A running ``pharos serve``."""

    address: str
    """Host and port."""
    pid: int
    lines: list[str]
    """Of its log so far; all of them once the block has ended."""


@contextmanager
def serve_model(
    model: Path | str,
    *flags: str,
    variables: Mapping[str, str] | None = None,
    exit_code: int = 0,
) -> Iterator[Served]:
    """Serve a model on a free port until the block ends; it must then end with ``exit_code``.

    Of Pharos' and OpenTelemetry's variables it sees those alone that are given.
    """
    command = [sys.executable, "-m", "mlx_pharos", "serve", "--model", str(model), "--port", "0"]
    environment = os.environ | (variables or {})
    with subprocess.Popen(
        [*command, *flags], stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        assert server.stderr is not None
        lines: list[str] = []
        log = _kept(server.stderr, lines)
        try:
            ready = next(line for line in log if "is ready" in line)
            found = re.search(r"http://([\d.:]+)", ready)
            assert found is not None
            # The log has to go on: a full pipe would stop the server at its next line.
            reader = threading.Thread(target=deque, args=(log, 0), daemon=True)
            reader.start()
            yield Served(found[1], server.pid, lines)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=15)
        reader.join(timeout=5)
    assert server.returncode == exit_code


def _kept(log: Iterable[str], lines: list[str]) -> Iterator[str]:
    for line in log:
        lines.append(line)
        yield line
