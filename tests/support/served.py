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
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["Served", "serve_model"]


class Served(NamedTuple):
    """A running ``pharos serve``."""

    address: str
    """Host and port."""
    pid: int


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
        try:
            ready = next(line for line in iter(server.stderr.readline, "") if "is ready" in line)
            found = re.search(r"http://([\d.:]+)", ready)
            assert found is not None
            # The log has to go on: a full pipe would stop the server at its next line.
            reader = threading.Thread(target=deque, args=(server.stderr, 0), daemon=True)
            reader.start()
            yield Served(found[1], server.pid)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=15)
    assert server.returncode == exit_code
