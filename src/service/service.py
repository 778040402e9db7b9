"""What a service manager has to know about one server."""

from __future__ import annotations

import importlib.metadata
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..engine.models.hub_cache import cache_directory
from ..sources import FOREIGN_VARIABLES, PREFIX, SECRETS, variable_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..settings import Settings

__all__ = ["Service", "service_of"]

_AFTER_THE_GRACE = 20
"""Seconds that a stop may take beyond the grace: 2 for the last events, 1 for the threads, 5 for
the engine, 5 for telemetry, and as much again on a busy machine."""
_ELSEWHERE = ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE")
"""Variables of the Hub's library that change what is fetched."""
_CUDA = ("mlx-cuda-12", "mlx-cuda-13")


@dataclass(frozen=True, kw_only=True)
class Service:
    """One server, as its service manager sees it."""

    command: tuple[str, ...]
    """The program by its full path, and its arguments."""
    directory: Path
    """Where it runs: paths in its arguments and its ``pharos.toml`` count from there."""
    caches: tuple[Path, ...]
    """Where it writes: Pharos' models, and what the Hub's library downloads."""
    environment: tuple[tuple[str, str], ...]
    """Variables that are no secrets."""
    grace: float
    """Seconds that running requests get when it is stopped."""
    user: str = ""
    """Who runs a service of the whole machine; empty: a service of one user's own."""
    cuda: bool = False
    """Whether it needs the devices and the writable code of NVIDIA's driver."""

    @property
    def stop_seconds(self) -> int:
        """After which it may be killed: never before a stop in good order is over."""
        return math.ceil(self.grace) + _AFTER_THE_GRACE


def service_of(
    arguments: Sequence[str],
    settings: Settings,
    environment: Mapping[str, str],
    *,
    user: str = "",
) -> tuple[Service, tuple[str, ...]]:
    """Return the service that serves as ``pharos serve`` would here, and what it leaves out.

    Args:
        arguments: The flags of ``pharos serve``.
        settings: What they, the environment and the file make together.
        environment: The variables of this process. Those of settings go along; secrets do not,
            for what is rendered may be read by all, nor do variables of other programs.
        user: Who runs it; empty: a service of one user's own.

    Returns:
        The service, and the variables that are set here and that it will not see.
    """
    secret = {variable_of(name) for name in SECRETS} | FOREIGN_VARIABLES.keys()
    kept = {
        name: text
        for name, text in sorted(environment.items())
        if name.startswith(PREFIX) and name not in secret
    }
    left_out = [
        name
        for name in sorted(environment)
        if environment[name] and (name in secret or name in _ELSEWHERE or name.startswith("OTEL_"))
    ]
    cache = Path(settings.cache_dir).expanduser().absolute()
    hub = cache_directory().absolute()
    kept |= {"PHAROS_CACHE_DIR": str(cache), "HF_HUB_CACHE": str(hub)}
    made = Service(
        command=(*_program(), "serve", "--log-format", "json", *arguments),
        directory=Path.cwd(),
        caches=(cache, hub),
        environment=tuple(kept.items()),
        grace=settings.shutdown_grace,
        user=user,
        cuda=any(_is_installed(name) for name in _CUDA),
    )
    return made, tuple(left_out)


def _program() -> tuple[str, ...]:
    """Return how this very installation is started; a link to its Python is not resolved."""
    script = Path(sys.executable).with_name("pharos")
    if os.access(script, os.X_OK):
        return (str(script),)
    return (sys.executable, "-P", "-m", "mlx_pharos")


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
