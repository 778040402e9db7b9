"""What this process may use of the machine: memory and cores, container limits included.

A container's limit lies in the control group of the process or in one above
it, in version 2 (``memory.max``) or version 1 (``memory.limit_in_bytes``) of
the kernel's files; the tightest one counts. The machine's own figures come from
psutil. Nothing here imports mlx.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import psutil

__all__ = ["allocatable_memory", "available_memory", "memory_limit", "usable_cores"]

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_CGROUP_OF_PROCESS = Path("/proc/self/cgroup")


def available_memory() -> int:
    """Return the bytes that can be allocated now without swapping or being killed."""
    available = int(psutil.virtual_memory().available)
    for directory in _cgroups("memory"):
        limit = _number(directory / "memory.max", directory / "memory.limit_in_bytes")
        used = _number(directory / "memory.current", directory / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            available = min(available, limit - used + _reclaimable(directory))
    return max(available, 0)


def allocatable_memory() -> int:
    """Return the bytes that a process which has just loaded its model can still allocate.

    That is what is available, within the process's own limits (``prlimit``). They
    bound its address space, in which what it has freed stays: to a process that
    has worked for a while they say nothing of what it can still use.
    """
    return max(min(available_memory(), _within_own_limits()), 0)


def _within_own_limits() -> int:
    """Return what the limits leave of address space and data."""
    rest = sys.maxsize
    used = psutil.Process().memory_info()
    # macOS has the limits but does not count what they bound as Linux does.
    if sys.platform == "linux":
        for kind, size in ((resource.RLIMIT_AS, used.vms), (resource.RLIMIT_DATA, used.data)):
            limit, _ = resource.getrlimit(kind)
            if limit != resource.RLIM_INFINITY:
                rest = min(rest, limit - size)
    return rest


def memory_limit() -> int | None:
    """Return the bytes that a container may hold, the tightest limit of all; None without one."""
    limits = [
        _number(directory / "memory.max", directory / "memory.limit_in_bytes")
        for directory in _cgroups("memory")
    ]
    # Version 1 writes a number near 2^63 where there is no limit.
    real = [each for each in limits if each is not None and each < psutil.virtual_memory().total]
    return min(real, default=None)


def usable_cores() -> int:
    """Return how many cores this process can keep busy: at least 1.

    Physical cores, as a second thread on a core shares its vector unit; no
    more than the scheduler's affinity and the container's quota allow.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    logical = len(affinity(0)) if affinity else os.cpu_count() or 1
    cores = min(logical, psutil.cpu_count(logical=False) or logical)
    for directory in _cgroups("cpu"):
        quota = _cpu_quota(directory)
        if quota is not None:
            cores = min(cores, round(quota))
    return max(cores, 1)


def _cgroups(controller: str) -> list[Path]:
    """Return the control group directories that bound this process, innermost first."""
    try:
        lines = _CGROUP_OF_PROCESS.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    directories: list[Path] = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        root = _CGROUP_ROOT / controller if controllers else _CGROUP_ROOT
        # Inside a container the name can be that of the host: then only the root exists.
        path = root / name.lstrip("/")
        while path != root and root in path.parents:
            directories.append(path)
            path = path.parent
        directories.append(root)
    return [directory for directory in directories if directory.is_dir()]


def _number(*candidates: Path) -> int | None:
    """Return the number in the first file that exists; None where it says "max" or none does."""
    for path in candidates:
        try:
            return int(path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
    return None


def _reclaimable(directory: Path) -> int:
    """Return the bytes of clean file cache that the kernel drops when memory is needed."""
    try:
        lines = (directory / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    figures = dict(line.split(" ", 1) for line in lines if " " in line)
    return int(figures.get("inactive_file", figures.get("total_inactive_file", "0")))


def _cpu_quota(directory: Path) -> float | None:
    """Return the quota in cores; None where there is none."""
    try:
        quota, period = (directory / "cpu.max").read_text(encoding="ascii").split()
        return int(quota) / int(period)
    except (OSError, ValueError):
        pass
    quota_us = _number(directory / "cpu.cfs_quota_us")
    period_us = _number(directory / "cpu.cfs_period_us")
    if quota_us is None or not period_us or quota_us < 0:
        return None
    return quota_us / period_us
