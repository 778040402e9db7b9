"""Render the files of service managers in ``deploy/``, for a machine as the how-to describes it.

``make docs`` writes them; a test fails where a file and the code differ. ``pharos service print``
renders the same for the machine it runs on.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mlx_pharos.service import Service, launchd_plist, systemd_unit
from mlx_pharos.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FILES"]


def _service(home: str, cache: str, *, user: str) -> Service:
    pharos, hub = f"{cache}/pharos", f"{cache}/huggingface/hub"
    return Service(
        command=(f"{home}/.venv/bin/pharos", "serve", "--log-format", "json"),
        directory=Path(home),
        caches=(Path(pharos), Path(hub)),
        environment=(("PHAROS_CACHE_DIR", pharos), ("HF_HUB_CACHE", hub)),
        grace=Settings.model_fields["shutdown_grace"].default,
        user=user,
    )


_LINUX = _service("/opt/pharos", "/var/cache/pharos", user="pharos")
_LINUX_USER = _service("/home/ada/pharos", "/home/ada/.cache", user="")
_MACOS = _service("/opt/pharos", "/Users/pharos/Library/Caches", user="pharos")
_MACOS_USER = _service("/Users/ada/pharos", "/Users/ada/Library/Caches", user="")

FILES: dict[str, Callable[[], str]] = {
    "deploy/systemd/pharos.service": lambda: systemd_unit(_LINUX),
    "deploy/systemd/user/pharos.service": lambda: systemd_unit(_LINUX_USER),
    "deploy/launchd/LaunchDaemons/local.pharos.plist": lambda: launchd_plist(
        _MACOS, log="/Library/Logs/pharos.log"
    ),
    "deploy/launchd/LaunchAgents/local.pharos.plist": lambda: launchd_plist(
        _MACOS_USER, log="/Users/ada/Library/Logs/pharos.log"
    ),
}
"""The files and what makes them."""
