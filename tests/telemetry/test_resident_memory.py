"""What the system says of the processes' memory, and what is kept open for it."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading

import psutil
import pytest

from mlx_pharos.telemetry import memory as module
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


def _sized(monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> ResidentMemory:
    """Return a memory of one process that has these sizes, look by look."""

    class Sized:
        def __init__(self, pid: int) -> None:
            assert pid == 1

        def size(self) -> int:
            return sizes.pop(0)

    monkeypatch.setattr(module, "_Process", Sized)
    return ResidentMemory(lambda: {"engine": 1})


def test_the_peak_is_the_highest_that_anybody_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of who asks for each process, as a scrape does; it begins again after a reset alone."""
    memory = _sized(monkeypatch, [50, 900, 60, 70])
    memory.mark()
    assert {"engine": 900} == memory.read()
    assert (60, 900, 50) == (memory.total(), memory.peak, memory.initial)
    memory.reset()
    assert (70, 70) == (memory.peak, memory.initial)


def test_the_peak_does_not_fall_when_two_look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second thread sees more while the first one compares what it saw."""

    class Slow(int):
        """A size that is compared for as long as the other thread takes, if it is let."""

        def __radd__(self, other: int) -> Slow:
            return Slow(int(self) + other)

        def __gt__(self, other: int) -> bool:
            threads.append(threading.Thread(target=memory.total))
            threads[-1].start()
            threads[-1].join(0.3)
            return int(self) > other

    threads: list[threading.Thread] = []
    memory = _sized(monkeypatch, [50, Slow(100), 200])
    assert (50, 50) == (memory.total(), memory.peak)
    assert 100 == memory.total()
    (other,) = threads
    other.join(10)
    assert 200 == memory.peak
