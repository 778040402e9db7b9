"""Put an optimised BLAS in front of mlx's own on the Linux CPU, and say which one is live.

mlx's Linux wheel is linked against the reference BLAS, about thirty times slower
at matrix products than this machine can be. Symbols of libraries that are
loaded globally win over a library's own dependencies: an OpenBLAS loaded with
``RTLD_GLOBAL`` before mlx gets mlx's calls of ``cblas_sgemm``. Only one that
chooses its code by the processor it meets gets them. On macOS mlx uses
Accelerate, and there is nothing to do.

This module does not import mlx before :func:`measure` is called.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .blas_threads import BlasThreads, one_thread
from .unprefixed import load_without_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
    handle: ctypes.CDLL | None = None
    """The library, loaded."""
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
    problems = []
    for library, load in _candidates():
        try:
            handle = load(library)
        except (OSError, ValueError, AttributeError) as error:
            problems.append(f"{library.name} cannot be used: {error}")
            continue
        return BlasPreload(library, "found and loaded", handle, BlasThreads(handle))
    none = "no OpenBLAS found: install scipy-openblas32 or the system's libopenblas"
    return BlasPreload(None, "; ".join(problems) or none)


def measure(preloaded: BlasPreload) -> BlasMeasurement:
    """Time a matrix product of mlx on one core and find the library that did it.

    Imports mlx; takes well under a second. Run it in the engine process or in
    a process of its own, after :func:`preload`, with what that returned.
    """
    import mlx.core as mx  # noqa: PLC0415 - the module must be loadable without mlx

    owner = _owner("cblas_sgemm", preloaded)
    with mx.stream(mx.cpu), one_thread(preloaded.handle):
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
    return BlasMeasurement(_name(owner, gflops), owner, best * 1e3, gflops)


def _name(library: Path | None, gflops: float) -> BlasName:
    """Name the BLAS by its file, and call it optimised only where the speed agrees."""
    if sys.platform == "darwin":
        return "accelerate"
    if library is None:
        return ""
    if gflops <= _REFERENCE_GFLOPS:
        return "reference"
    return "openblas" if "openblas" in library.resolve().name else "other"


def _candidates() -> Iterator[tuple[Path, Callable[[Path], ctypes.CDLL]]]:
    """Yield OpenBLAS libraries, the declared dependency's first, and how to load each for all."""
    package = importlib.util.find_spec("scipy_openblas32")
    for root in (package.submodule_search_locations if package else None) or ():
        for library in Path(root, "lib").glob("libscipy_openblas.so"):
            yield library, lambda path: load_without_prefix(path, "scipy_", ctypes.RTLD_GLOBAL)
    found = ctypes.util.find_library("openblas")
    if found:
        yield Path(found), _load_portable


def _load_portable(library: Path) -> ctypes.CDLL:
    """Load an OpenBLAS for everybody, if it chooses its code by the processor it meets.

    One that was built for a single kind of processor ends the process on any other.

    Raises:
        OSError: It cannot be loaded.
        ValueError: It was built for one kind of processor, or is no OpenBLAS.
    """
    describe = getattr(ctypes.CDLL(str(library)), "openblas_get_config", None)
    if describe is not None:
        describe.restype = ctypes.c_char_p
    if describe is None or b"DYNAMIC_ARCH" not in describe():
        msg = "it was built for one kind of processor"
        raise ValueError(msg)
    return ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


class _Symbol(ctypes.Structure):
    """``Dl_info`` of ``dladdr``."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _owner(symbol: str, preloaded: BlasPreload) -> Path | None:
    """Return the file whose ``symbol`` mlx is bound to; None where it uses none."""
    scopes: list[str | None] = [None]  # what was loaded globally wins over what mlx brings
    package = importlib.util.find_spec("mlx")
    for root in (package.submodule_search_locations if package else None) or ():
        scopes.extend(str(path) for path in Path(root, "lib").glob("libmlx.*"))
    for scope in scopes:
        address = _address(ctypes.CDLL(scope), symbol)
        if address is None:
            continue
        if preloaded.handle is not None and address == _address(preloaded.handle, symbol):
            return preloaded.library
        found = _Symbol()
        if ctypes.CDLL(None).dladdr(ctypes.c_void_p(address), ctypes.byref(found)) and found.file:
            return Path(os.fsdecode(found.file))
    return None


def _address(library: ctypes.CDLL, symbol: str) -> int | None:
    """Return where a function of the library is; None where it has none of that name."""
    function = getattr(library, symbol, None)
    return None if function is None else ctypes.cast(function, ctypes.c_void_p).value
