"""What the system says of the processes' memory, and what is kept open for it."""

from __future__ import annotations

import gc
import subprocess
import sys

import psutil
import pytest

from mlx_pharos.telemetry.memory import ResidentMemory

_MIB = 2**20
_CHILD = "import sys; held = b'x' * int(sys.argv[1]); print(flush=True); sys.stdin.readline()"


def _child(size: int) -> subprocess.Popen[bytes]:
    """Start a process that holds so many bytes until its input ends."""
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    return child


def test_the_figure_is_the_systems() -> None:
    """It is what psutil says of the process, at each look anew; without the process there is none."""
    with _child(50 * _MIB) as child:
        memory = ResidentMemory(lambda: {"engine": child.pid})
        expected = psutil.Process(child.pid).memory_info().rss
        assert 50 * _MIB < expected == memory.read()["engine"]
        child.communicate(b"\n")
        assert {} == memory.read()
        assert memory.total() is None


def test_processes_that_have_ended_keep_no_file_open() -> None:
    """After 20 engines there are as many open files as after the first."""
    now: list[int] = []
    memory = ResidentMemory(lambda: dict(zip("abc", now, strict=False)))
    us = psutil.Process()
    if not hasattr(us, "num_fds"):
        pytest.skip("the system does not count a process's open files")
    open_files = []
    for _ in range(20):
        with _child(1) as child:
            now[:] = [child.pid]
            assert memory.read()["a"] > 0
            child.communicate(b"\n")
        gc.collect()
        open_files.append(us.num_fds())
    assert open_files[0] == open_files[-1]
    now.clear()
    assert {} == memory.read()
