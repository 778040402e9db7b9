"""A program of somebody else's that runs beside the tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import urllib.request
from typing import TYPE_CHECKING, Self

from .polling import until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

__all__ = ["Program", "free_ports"]


class Program:
    """Starts when the block is entered, is ready then, and is ended with the block.

    What it says goes to a file, so that no pipe fills up. Its environment is
    the tests' own and what is given.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        ready: str,
        folder: Path,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Describe it.

        Args:
            command: The program and its arguments.
            ready: The URL that answers 200 when it is ready.
            folder: It runs in; its log is written beside it.
            variables: Of its environment.
        """
        # Where the system can do it, nothing outlives tests that were killed themselves.
        guard = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        self._command = [*guard, *map(str, command)]
        self._ready = ready
        self._folder = folder
        self._variables = dict(variables or {})
        self._process: subprocess.Popen[bytes] | None = None
        self.log = folder.with_suffix(".log")

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env={**os.environ, **self._variables},
                stdout=log,
                stderr=log,
            )
        try:
            until(self._is_ready, what=f"{self._command} is ready")
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def kill(self) -> None:
        """End it as the kernel does: SIGKILL."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _is_ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            said = self.log.read_text(encoding="utf-8", errors="replace")[-3000:]
            message = f"{self._command} ended with {self._process.returncode}: {said}"
            raise AssertionError(message)
        with urllib.request.urlopen(self._ready, timeout=5) as answer:
            return bool(answer.status == 200)


def free_ports(count: int) -> list[int]:
    """Return ports of this machine where nobody listens, all different."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(server.getsockname()[1]) for server in servers]
    for server in servers:
        server.close()
    return ports
