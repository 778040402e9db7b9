"""The BLAS in front of mlx is the one that was found, and what is said about it was measured."""

from __future__ import annotations

import ctypes.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_pharos.engine.models import blas, blas_threads, machine
from mlx_pharos.engine.models.blas_threads import BlasThreads, CpuTimes
from mlx_pharos.engine.models.unprefixed import load_without_prefix, without_prefix

_MEASURE = """
import dataclasses, json, sys
from mlx_pharos.engine.models import blas
assert "mlx.core" not in sys.modules
loaded = blas.preload(sys.argv[1])
found = blas.measure(loaded)
print(json.dumps([str(loaded.library), loaded.threads and loaded.threads.count, found.name, str(found.library),
                  found.milliseconds, found.gflops, found.is_optimised]))
"""


def _measured(mode: str) -> tuple[str, int, str, str, float, float, bool]:
    finished = subprocess.run(
        [sys.executable, "-c", _MEASURE, mode], capture_output=True, text=True, check=True
    )
    library, threads, name, owner, milliseconds, gflops, optimised = json.loads(finished.stdout)
    return library, threads, name, owner, milliseconds, gflops, optimised


@pytest.mark.skipif(sys.platform != "linux", reason="macOS brings Accelerate")
def test_openblas_is_found_live_and_faster() -> None:
    """The declared dependency is loaded, mlx is bound to it, and it is faster than without."""
    library, threads, name, owner, _, gflops, optimised = _measured("auto")
    off_library, _, off_name, off_owner, _, off_gflops, off_optimised = _measured("off")

    assert "openblas" in Path(library).name
    assert "openblas" == name
    assert Path(library) == Path(owner)
    assert optimised
    assert threads >= 1
    assert "None" == off_library
    assert "reference" == off_name
    assert "openblas" not in off_owner
    assert not off_optimised
    assert gflops > 4 * off_gflops


@pytest.mark.skipif(sys.platform != "linux", reason="macOS brings Accelerate")
def test_operators_thread_count_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """OPENBLAS_NUM_THREADS is what is used, and it stays."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")

    assert 3 == _measured("auto")[1]


@pytest.mark.skipif(sys.platform != "linux", reason="macOS brings Accelerate")
def test_threads_follow_what_the_machine_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A core that others use is not used; looks are a second apart; what is set is what is asked."""
    library = load_without_prefix(_declared(), "scipy_", ctypes.RTLD_LOCAL)
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setattr(blas_threads, "usable_cores", lambda: 4)
    now, times = [0.0], [CpuTimes(0.0, 0.0)]
    threads = BlasThreads(library, clock=lambda: now[0], times=lambda: times[0])
    counts = [threads.count]

    for seconds, idle, own in [(0.5, 2, 0), (0.6, 2.4, 2.0), (1, 0.1, 1.5), (2, 0, 0.1), (1, 9, 1)]:
        now[0] += seconds
        times[0] = CpuTimes(times[0].idle + idle, times[0].own + own)
        threads.adjust()
        counts.append(threads.count)

    assert [3, 3, 4, 1, 1, 4] == counts


def test_preload_after_mlx_is_too_late_and_says_so() -> None:
    """Nothing is loaded once mlx is there, and the reason is given."""
    pytest.importorskip("mlx.core")

    done = blas.preload("auto")

    assert done.library is None
    assert ("too late" if sys.platform == "linux" else "system's own") in done.reason


@pytest.mark.skipif(sys.platform != "linux", reason="macOS brings Accelerate")
def test_the_declared_library_runs_on_every_processor() -> None:
    """It chooses its code when it is loaded. One that was built for AVX-512 ends the engine with
    SIGILL on a processor without.
    """
    library = load_without_prefix(_declared(), "scipy_", ctypes.RTLD_LOCAL)
    library.openblas_get_config.restype = ctypes.c_char_p

    assert b"DYNAMIC_ARCH" in library.openblas_get_config()


@pytest.mark.skipif(sys.platform != "linux", reason="macOS brings Accelerate")
def test_a_library_for_one_kind_of_processor_is_not_used() -> None:
    """It could end the engine with SIGILL; so could anything that does not say what it is."""
    with pytest.raises(ValueError, match="one kind of processor"):
        blas._load_portable(Path(ctypes.util.find_library("m") or "libm.so.6"))


@pytest.mark.skipif(sys.platform != "linux", reason="ELF")
def test_a_library_can_be_loaded_without_its_prefix() -> None:
    """All of its functions are found by their plain names only, and compute."""
    library = load_without_prefix(_declared(), "scipy_", ctypes.RTLD_LOCAL)
    left, right = (ctypes.c_double * 3)(1, 2, 3), (ctypes.c_double * 3)(4, 5, 6)
    product = library.cblas_ddot
    product.restype = ctypes.c_double

    assert 32.0 == product(3, left, 1, right, 1)
    assert not hasattr(library, "scipy_cblas_ddot")
    for name in ("cblas_sgemm", "sgetrf_", "cgesdd_", "openblas_get_config"):
        assert hasattr(library, name)


@pytest.mark.skipif(sys.platform != "linux", reason="ELF")
def test_a_file_without_the_prefix_is_refused_in_words() -> None:
    """What is no ELF file, was cut, or has no such names changes nothing."""
    content = _declared().read_bytes()

    with pytest.raises(ValueError, match="not a 64-bit"):
        without_prefix(b"MZ" + content, "scipy_")
    with pytest.raises(ValueError, match="cannot be read"):
        without_prefix(content[:64], "scipy_")
    with pytest.raises(ValueError, match="none of its symbols"):
        without_prefix(content, "numpy_")


@pytest.mark.skipif(sys.platform != "linux", reason="ELF")
def test_a_python_without_files_in_memory_asks_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds of Python for old systems lack the function, also where the system has it."""
    monkeypatch.delattr("os.memfd_create")

    assert hasattr(load_without_prefix(_declared(), "scipy_", ctypes.RTLD_LOCAL), "cblas_sgemm")


def _declared() -> Path:
    library, _ = next(iter(blas._candidates()))
    return library


def test_limits_of_a_container_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory and cores are those of the tightest control group, version 2."""
    group = tmp_path / "fs" / "outer" / "inner"
    group.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("0::/outer/inner\n")
    (group.parent / "memory.max").write_text("1000000\n")
    (group.parent / "memory.current").write_text("700000\n")
    (group.parent / "memory.stat").write_text("anon 1\ninactive_file 100000\n")
    (group / "memory.max").write_text("max\n")
    (group / "cpu.max").write_text("100000 100000\n")
    monkeypatch.setattr(machine, "_CGROUP_ROOT", tmp_path / "fs")
    monkeypatch.setattr(machine, "_CGROUP_OF_PROCESS", tmp_path / "cgroup")

    assert 400_000 == machine.available_memory()
    assert 1 == machine.usable_cores()


def test_limits_of_an_older_container_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with version 1, whose group may only be visible at its root."""
    memory, cpu = tmp_path / "fs" / "memory", tmp_path / "fs" / "cpu"
    memory.mkdir(parents=True)
    cpu.mkdir()
    (tmp_path / "cgroup").write_text("5:memory:/docker/x\n3:cpu:/docker/x\n")
    (memory / "memory.limit_in_bytes").write_text("500000\n")
    (memory / "memory.usage_in_bytes").write_text("200000\n")
    (cpu / "cpu.cfs_quota_us").write_text("-1\n")
    (cpu / "cpu.cfs_period_us").write_text("100000\n")
    monkeypatch.setattr(machine, "_CGROUP_ROOT", tmp_path / "fs")
    monkeypatch.setattr(machine, "_CGROUP_OF_PROCESS", tmp_path / "cgroup")

    assert 300_000 == machine.available_memory()
    assert machine.usable_cores() >= 1
