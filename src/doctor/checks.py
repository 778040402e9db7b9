"""The doctor's checks: each looks at one thing and returns what it found.

What would keep a server from serving they ask of ``ConfigValidator``, as serve
does. None of them changes anything but for a file that is made and removed to
see whether the cache directory can be written.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from ..config import ConfigurationError, ConfigValidator
from ..engine.models.machine import available_memory, memory_limit, usable_cores
from ..resilience.sizing import OTHER_FILES, connection_count, thread_count
from ..telemetry.otlp import otlp_target
from ..telemetry.signals import SIGNALS
from ..validation.address import is_loopback
from .finding import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..settings import Settings
    from ..sources import Problem
    from .finding import Status

__all__ = ["check_cache", "check_machine", "check_network", "check_telemetry", "probe_mlx"]

_GIB = 1024**3
_PROBE_SECONDS = 120.0
"""MLX loads in one to two seconds; a cold disk or a busy machine may need much more."""


def check_machine(blas: str) -> Iterator[Finding]:
    """Yield what does not depend on a model or an address."""
    yield _python()
    yield _platform()
    yield _memory()
    yield _packages()
    yield from _mlx(blas)


def check_network(settings: Settings, validator: ConfigValidator) -> Iterator[Finding]:
    """Yield who can come in by which address, and how many.

    Args:
        settings: What would be served with, valid by itself.
        validator: Of these settings.
    """
    yield from _addresses(settings, validator)
    yield from _access(settings, validator)
    yield from _open_files(settings)


def _python() -> Finding:
    version = platform.python_version()
    figures: dict[str, object] = {"version": version, "executable": sys.executable}
    text = f"{platform.python_implementation()} {version} in {sys.prefix}"
    return Finding(name="Python", text=text, figures=figures)


def _platform() -> Finding:
    libc = " ".join(platform.libc_ver()).strip()
    release = platform.mac_ver()[0] or libc
    text = f"{platform.system()} {platform.machine()}" + (f", {release}" if release else "")
    figures: dict[str, object] = {
        "system": platform.system(),
        "machine": platform.machine(),
        "release": release,
    }
    supported = {("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64")}
    if (platform.system(), platform.machine()) not in supported:
        mend = "use macOS on Apple silicon, or Linux on x86-64 or 64-bit Arm: MLX has no others"
        return Finding(name="Platform", status="error", text=text, mend=mend, figures=figures)
    return Finding(name="Platform", text=text, figures=figures)


def _memory() -> Finding:
    total, free = psutil.virtual_memory().total, available_memory()
    cores, limit = usable_cores(), memory_limit()
    of = f"{(limit or total) / _GIB:.1f} GiB" + (" that the control group allows" if limit else "")
    text = f"{free / _GIB:.1f} GiB free of {of}, {cores} usable core" + ("s" if cores > 1 else "")
    figures: dict[str, object] = {"total_bytes": total, "available_bytes": free, "cores": cores}
    figures["limit_bytes"] = limit
    if free < _GIB:
        return Finding(
            name="Memory",
            status="warning",
            text=text,
            mend="close other programs: the starter model alone needs about 1 GiB",
            figures=figures,
        )
    return Finding(name="Memory", text=text, figures=figures)


def _packages() -> Finding:
    """Compare what is installed with what the distribution asks for."""
    try:
        installed = ConfigValidator().validate_dependencies()
    except ConfigurationError as error:
        wrong = [f"{each.subject} {each.text.partition('; ')[0]}" for each in error.problems]
        mends = [each.text.partition("; ")[2] for each in error.problems]
        return Finding(
            name="Packages", status="error", text="; ".join(wrong), mend="; ".join(mends)
        )
    shown = ("mlx", "mlx-lm", "flask", "waitress")
    text = ", ".join(f"{name} {installed[name]}" for name in shown)
    more = len(installed) - len(shown) - 1
    text += f" and {more} more, all in the ranges that this Pharos was made for"
    return Finding(name="Packages", text=text, figures={**installed})


def probe_mlx(blas: str) -> tuple[dict[str, Any], str]:
    """Return what MLX says of itself in a process of its own, or why it says nothing."""
    command = [sys.executable, "-P", "-m", "mlx_pharos.doctor.probe", blas]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            command,
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            check=False,
            # One thread: with more, a busy machine makes a fast BLAS look like a slow one.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired:
        return {}, f"no answer within {_PROBE_SECONDS:g} s"
    if done.returncode < 0:
        return {}, f"ended by {_name_of(-done.returncode)}"
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()
        return {}, last[-1] if last else f"ended with {done.returncode}"
    found: dict[str, Any] = json.loads(done.stdout)
    return found, ""


def _name_of(number: int) -> str:
    """Name a signal; those of real time have numbers alone."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _mlx(blas: str) -> Iterator[Finding]:
    try:
        backend = ConfigValidator().validate_mlx_backend()
    except ConfigurationError as error:
        problem = error.problems[0]
        text, _, mend = problem.text.partition("; ")
        yield Finding(name="MLX", status="error", text=f"MLX {text}", mend=mend)
        return
    found, failure = probe_mlx(blas)
    if failure:
        mend = "install Pharos again, with its dependencies: make clean install"
        if signal.SIGILL.name in failure:
            mend = "this processor lacks an instruction that MLX or its BLAS uses; try --blas off"
        yield Finding(name="MLX", status="error", text=f"does not work: {failure}", mend=mend)
        return
    name = found["device_name"]
    memory = found["device_memory_bytes"]
    text = f"{backend} on the {found['device'].upper()}" + (f" ({name}" if name else "")
    text += (f", {memory / _GIB:.0f} GiB" if memory else "") + (")" if name else "")
    figures = {key: found[key] for key in ("device", "device_name", "device_memory_bytes")}
    yield Finding(name="MLX", text=text, figures={"backend": backend, **figures})
    yield _blas(found, blas)


def _blas(found: dict[str, Any], setting: str) -> Finding:
    figures = {key: value for key, value in found.items() if key.startswith("blas")}
    text = f"{found['blas'] or 'none'}, measured {found['blas_gflops']:g} GFLOP/s on one core"
    if found["blas_optimised"] or found["device"] == "gpu" or not found["blas"]:
        return Finding(name="BLAS", text=text, figures=figures)
    if setting == "off":
        mend = "remove the setting blas = off to be many times faster on the CPU"
    elif "openblas" in Path(found["blas_library"]).name:
        text = f"OpenBLAS is live, but only {found['blas_gflops']:g} GFLOP/s were measured"
        mend = "look whether the machine is busy, and run the doctor again"
    else:
        mend = f"{found['blas_preload']}; mend: pip install scipy-openblas32"
    return Finding(name="BLAS", status="warning", text=text, mend=mend, figures=figures)


def check_cache(settings: Settings, validator: ConfigValidator) -> Finding:
    """Say whether models can be kept, as far as this one needs it."""
    directory = settings.cache_dir
    try:
        free = validator.validate_cache_dir()
    except ConfigurationError as error:
        text, _, mend = error.problems[0].text.partition("; ")
        return Finding(name="Cache", status="error", text=text, mend=mend)
    if free is None:
        return Finding(
            name="Cache",
            status="warning",
            text=f"{directory} cannot be written",
            mend="a model that is complete is served all the same; for others choose another "
            "directory: --cache-dir DIR or PHAROS_CACHE_DIR",
        )
    text = f"{directory}, {free / _GIB:.1f} GiB free"
    figures: dict[str, object] = {"directory": str(directory), "free_bytes": free}
    if free < _GIB:
        return Finding(
            name="Cache",
            status="warning",
            text=text,
            mend="free some disk: the starter model takes about 0.4 GiB while it is converted",
            figures=figures,
        )
    return Finding(name="Cache", text=text, figures=figures)


def check_telemetry(settings: Settings, validator: ConfigValidator) -> Iterator[Finding]:
    """Say what is sent to a collector, or why nothing can be."""
    try:
        validator.validate_telemetry()
    except ConfigurationError as error:
        for each in error.problems:
            text = f"{each.subject} {each.text}"
            mend = "correct the variable, or unset it"
            yield Finding(name="Telemetry", status="error", text=text, mend=mend)
        return
    targets = {signal: otlp_target(signal, settings.otlp_endpoint) for signal in SIGNALS}
    sent = {signal: target.address for signal, target in targets.items() if target}
    listed = ", ".join(f"{signal} to {where}" for signal, where in sent.items())
    text = f"by OTLP: {listed}" if sent else "nothing is sent by OTLP"
    yield Finding(name="Telemetry", text=text, figures={"signals": [*sent]})


def _addresses(settings: Settings, validator: ConfigValidator) -> Iterator[Finding]:
    """Try both addresses, as serve does before it starts."""
    check = partial(validator.validate_port, settings.port, host=settings.host)
    yield _address("Address", settings.host, settings.port, check)
    if settings.ops_port is not None:
        check_ops = validator.validate_ops_port
        yield _address("Operations", settings.ops_host, settings.ops_port, check_ops)


def _address(name: str, host: str, port: int, check: Callable[[], object]) -> Finding:
    figures: dict[str, object] = {"host": host, "port": port}
    try:
        check()
    except ConfigurationError as error:
        text, _, mend = error.problems[0].text.partition("; ")
        return Finding(name=name, status="error", text=text, mend=mend, figures=figures)
    text = f"{host}:{port} is free" if port else f"any free port of {host}"
    return Finding(name=name, text=text, figures=figures)


def _access(settings: Settings, validator: ConfigValidator) -> Iterator[Finding]:
    """Say who may use the model, and what a server that starts should be warned of."""
    try:
        validator.validate_access()
        kept = validator.validate_keys()
    except ConfigurationError as error:
        yield from (_found("Access", "error", each) for each in error.problems)
        return
    yield from (_found("Access", "warning", each) for each in validator.warnings())
    count = len(kept) + (settings.api_key is not None)
    figures: dict[str, object] = {"keys": count, "names": [each.name for each in kept]}
    if count:
        text = f"clients of /v1 need {'the key' if count == 1 else f'one of {count} keys'}"
    elif is_loopback(settings.host):
        text = f"no key, and only this machine reaches {settings.host}"
    else:
        text = f"no key, for everybody who reaches {settings.host}"
    yield Finding(name="Access", text=text, figures=figures)


def _found(name: str, status: Status, problem: Problem) -> Finding:
    text, _, mend = problem.text.partition("; ")
    return Finding(name=name, status=status, text=f"{problem.subject} {text}", mend=mend)


def _open_files(settings: Settings) -> Iterator[Finding]:
    """Every connection is an open file; the server raises its soft limit up to the hard one."""
    threads = thread_count(
        settings.threads, max_batch=settings.max_batch, max_queue=settings.max_queue
    )
    wanted = connection_count(settings.connection_limit, threads=threads) + OTHER_FILES
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= wanted:
        return
    yield Finding(
        name="Open files",
        status="warning",
        text=f"this system allows {hard}, and the settings may need {wanted}",
        mend="raise the hard limit (ulimit -H -n), or lower connection_limit",
        figures={"limit": hard, "wanted": wanted},
    )
