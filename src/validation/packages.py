"""What is installed, compared with what this distribution's own metadata asks for."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from functools import cache

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from .errors import DependencyError

__all__ = ["MLX_BACKENDS", "check_backend", "check_package", "check_python", "requirements"]

_OURS = "mlx-pharos"
_AGAIN = "install Pharos again, with its dependencies: make clean install"

MLX_BACKENDS = ("mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")
"""Distributions that bring MLX's compiled half on Linux, in one and the same file."""


@cache
def requirements() -> dict[str, Requirement]:
    """Return what serving needs on this platform, extras left out, by normalised name.

    Raises:
        DependencyError: Pharos itself is not installed, so its metadata is not there.
    """
    try:
        lines = importlib.metadata.requires(_OURS) or ()
    except importlib.metadata.PackageNotFoundError:
        raise DependencyError(
            _OURS, f"is not installed, only its files are there; {_AGAIN}"
        ) from None
    wanted = [Requirement(line) for line in lines]
    return {
        canonicalize_name(each.name): each
        for each in wanted
        if each.marker is None or each.marker.evaluate({"extra": ""})
    }


def check_package(name: str) -> str:
    """Return the installed version of a distribution, if it is one that Pharos works with.

    Raises:
        DependencyError: It is not installed, or its version is out of the range.
    """
    wanted = requirements().get(canonicalize_name(name))
    version = installed(name)
    if not version:
        mend = f"pip install '{_plain(wanted)}'" if wanted else f"pip install {name}"
        raise DependencyError(name, f"is not installed; {mend}, or {_AGAIN}")
    if wanted is not None and not wanted.specifier.contains(version, prereleases=True):
        text = f"is {version}, and this Pharos needs {wanted.specifier}"
        raise DependencyError(name, f"{text}; pip install '{_plain(wanted)}'")
    return version


def check_python() -> str:
    """Return the version of the running Python, if it is one that Pharos works with.

    Raises:
        DependencyError: It is too old.
    """
    version = platform.python_version()
    try:
        wanted = importlib.metadata.metadata(_OURS)["Requires-Python"]
    except importlib.metadata.PackageNotFoundError:
        return version  # said by the packages already
    if not SpecifierSet(wanted).contains(version, prereleases=True):
        raise DependencyError(
            "python", f"is {version}, and this Pharos needs {wanted}; make PYTHON=... clean install"
        )
    return version


def check_backend() -> str:
    """Return the distribution that brings MLX's compiled half, with its version.

    Raises:
        DependencyError: On Linux there is none, or more than one; on macOS it is missing.
    """
    if sys.platform == "darwin":
        return f"mlx-metal {check_package('mlx-metal')}"
    found = [name for name in MLX_BACKENDS if installed(name)]
    if not found:
        raise DependencyError(
            "mlx",
            f"has no backend; install one: pip install 'mlx[cpu]=={installed('mlx')}', "
            "or mlx[cuda13] for NVIDIA",
        )
    if len(found) > 1:
        raise DependencyError(
            "mlx",
            f"has {len(found)} backends in one file ({', '.join(found)}); remove them "
            f"(pip uninstall {' '.join(found)}) and install the right one again",
        )
    return f"{found[0]} {installed(found[0])}"


def installed(name: str) -> str:
    """Return a distribution's version; empty where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _plain(wanted: Requirement) -> str:
    return f"{wanted.name}{wanted.specifier}"
