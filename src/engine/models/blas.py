"""Put an optimised BLAS in front of mlx's own on the Linux CPU, and say which one is live.

mlx's Linux wheel is linked against the reference BLAS, about thirty times slower
at matrix products than this machine can be. Symbols of libraries that are
loaded globally win over a library's own dependencies: an OpenBLAS loaded with
``RTLD_GLOBAL`` before mlx gets mlx's calls of ``cblas_sgemm``. On macOS mlx
uses Accelerate, and there is nothing to do.

This module does not import mlx before :func:`measure` is called.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import os
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .blas_threads import BlasThreads, one_thread
from .soname import load_as

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BlasMeasurement", "BlasPreload", "measure", "preload"]

BlasName = Literal["openblas", "accelerate", "reference", "other", ""]

_REFERENCE_GFLOPS = 8.0
"""Reference BLAS does 1 to 4 GFLOP/s on one core, OpenBLAS 20 to 150: the line between them."""

_ROWS, _INNER, _COLUMNS = 64, 1024, 1024
"""The product that is timed: 0.13 GFLOP, which takes the reference BLAS about 50 ms."""

_MIN_ROUNDS = 3
_SECONDS = 0.2
"""How often and how long the product is timed at least and at most."""


@dataclass(frozen=True, slots=True)
class BlasPreload:
    """What :func:`preload` did."""

    library: Path | None
    """The library in front of mlx's own; None where none is."""
    reason: str
    """A sentence for the operator."""
    threads: BlasThreads | None = None
    """Keeps the number of its threads right; for the thread that computes, between steps."""


@dataclass(frozen=True, slots=True)
class BlasMeasurement:
    """Which BLAS mlx calls, and how fast it is."""

    name: BlasName
    """Empty where mlx uses no BLAS at all."""
    library: Path | None
    """The file that ``cblas_sgemm`` comes from."""
    milliseconds: float
    """The best time of a (64 x 1024) by (1024 x 1024) product in float32, on one core."""
    gflops: float

    @property
    def is_optimised(self) -> bool:
        """Whether the speed is one that the reference BLAS cannot have."""
        return self.gflops > _REFERENCE_GFLOPS


def preload(mode: Literal["auto", "off"] = "auto") -> BlasPreload:
    """Load an optimised BLAS, if one is found, so that mlx uses it.

    Call it before anything imports ``mlx.core``, in the process that computes.
    It never raises: without it everything works, slowly.
    """
    if mode == "off":
        return BlasPreload(None, "switched off by the setting")
    if sys.platform != "linux":
        return BlasPreload(None, "mlx uses the system's own BLAS here")
    if "mlx.core" in sys.modules:
        return BlasPreload(None, "mlx was loaded before: too late")
    problem = "no OpenBLAS found: install cmeel-openblas or the system's libopenblas"
    for candidate in _candidates():
        try:
            _load_global(candidate)
        except (OSError, ValueError) as error:
            problem = f"{candidate.name} cannot be loaded: {error}"
            continue
        return BlasPreload(candidate, "found and loaded", BlasThreads(candidate))
    return BlasPreload(None, problem)


def measure() -> BlasMeasurement:
    """Time a matrix product of mlx on one core and find the library that did it.

    Imports mlx; takes well under a second. Run it in the engine process or in
    a process of its own, after :func:`preload`.
    """
    import mlx.core as mx  # noqa: PLC0415 - the module must be loadable without mlx

    library = _owner("cblas_sgemm")
    with mx.stream(mx.cpu), one_thread(library):
        left = mx.random.normal((_ROWS, _INNER))
        right = mx.random.normal((_COLUMNS, _INNER))
        mx.eval(left, right)
        best = float("inf")
        start = time.perf_counter()
        # The best of many, as other work on the machine only ever makes it slower.
        for count in range(50):
            begin = time.perf_counter()
            if count >= _MIN_ROUNDS and begin - start > _SECONDS:
                break
            mx.eval(left @ right.T)
            best = min(best, time.perf_counter() - begin)
    gflops = 2 * _ROWS * _INNER * _COLUMNS / best / 1e9
    return BlasMeasurement(_name(library, gflops), library, best * 1e3, gflops)


def _name(library: Path | None, gflops: float) -> BlasName:
    """Name the BLAS by its file, and call it optimised only where the speed agrees."""
    if sys.platform == "darwin":
        return "accelerate"
    if library is None:
        return ""
    if gflops <= _REFERENCE_GFLOPS:
        return "reference"
    return "openblas" if "openblas" in library.resolve().name else "other"


def _candidates() -> Iterator[Path]:
    """Yield OpenBLAS libraries: the declared dependency's first, then the system's."""
    for base in dict.fromkeys((sysconfig.get_path("platlib"), sysconfig.get_path("purelib"))):
        yield from sorted(Path(base, "cmeel.prefix", "lib").glob("libopenblas.so*"))[:1]
    for entry in sys.path:  # a user site or a zipapp's neighbour
        yield from sorted(Path(entry, "cmeel.prefix", "lib").glob("libopenblas.so*"))[:1]
    for name in ("openblas", "blis"):
        found = ctypes.util.find_library(name)
        if found:
            yield Path(found)


def _load_global(library: Path) -> None:
    """Load the library for everybody, with mlx's own libgfortran where the system has none."""
    try:
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    except OSError as error:
        if "libgfortran.so.5" not in str(error):
            raise
        _load_bundled_gfortran()
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def _load_bundled_gfortran() -> None:
    """Load the libgfortran of mlx's CPU wheel under the name that others ask for.

    Many small systems and container images have none of their own.
    """
    package = importlib.util.find_spec("mlx")
    roots = (package.submodule_search_locations if package else None) or ()
    folders = [Path(root).parent / "mlx_cpu.libs" for root in roots]
    for folder in folders:
        for runtime in folder.glob("libgfortran-*.so.5*"):
            for quadmath in folder.glob("libquadmath-*.so*"):
                ctypes.CDLL(str(quadmath))
            load_as(runtime, "libgfortran.so.5")
            return
    msg = "libgfortran.so.5 is missing: install it (Debian, Ubuntu: libgfortran5)"
    raise OSError(msg)


class _Symbol(ctypes.Structure):
    """``Dl_info`` of ``dladdr``."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _owner(symbol: str) -> Path | None:
    """Return the file whose ``symbol`` mlx is bound to; None where it uses none."""
    scopes: list[str | None] = [None]  # what was loaded globally wins over what mlx brings
    package = importlib.util.find_spec("mlx")
    for root in (package.submodule_search_locations if package else None) or ():
        scopes.extend(str(path) for path in Path(root, "lib").glob("libmlx.*"))
    for scope in scopes:
        try:
            function = getattr(ctypes.CDLL(scope), symbol)
        except (OSError, AttributeError):
            continue
        found = _Symbol()
        address = ctypes.cast(function, ctypes.c_void_p)
        if ctypes.CDLL(None).dladdr(address, ctypes.byref(found)) and found.file:
            return Path(os.fsdecode(found.file))
    return None
