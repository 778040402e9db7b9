"""A unit for systemd 252 and later, as described in systemd.service(5) and systemd.exec(5)."""

from __future__ import annotations

import re
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .service import Service

__all__ = ["systemd_unit"]

_PLAIN = re.compile(r"[A-Za-z0-9_@+=:,./-]+")


def systemd_unit(service: Service) -> str:
    """Return the text of the unit: hardened as far as the user's or the system's manager can."""
    folder = files(__package__).joinpath("templates")
    template = Template(folder.joinpath("pharos.service").read_text(encoding="utf-8"))
    kind = "system" if service.user else "user"
    sandbox = Template(folder.joinpath(f"{kind}.conf").read_text(encoding="utf-8"))
    return template.substitute(
        directory=_path(str(service.directory)),
        command=" ".join(_argument(each) for each in service.command),
        environment="\n".join(
            f"Environment={_quoted(f'{name}={text}')}" for name, text in service.environment
        ),
        stop_seconds=service.stop_seconds,
        grace=f"{service.grace:g}",
        sandbox=sandbox.substitute(
            user=service.user,
            caches=" ".join(_quoted(f"-{each}") for each in service.caches),
            devices=_CUDA_DEVICES if service.cuda else "PrivateDevices=yes",
        ).rstrip(),
        code=_CUDA_CODE if service.cuda else "MemoryDenyWriteExecute=yes",
        target="multi-user.target" if service.user else "default.target",
    )


_CUDA_DEVICES = "# NVIDIA's driver is reached through its devices: no PrivateDevices."
_CUDA_CODE = "# NVIDIA's driver compiles kernels while it runs: no MemoryDenyWriteExecute."


def _path(text: str) -> str:
    """Return a path of one directive; systemd takes the rest of the line, specifiers included."""
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    text = text.replace("%", "%%")
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _argument(text: str) -> str:
    """Return an argument of a command line, where a ``$`` would be a variable."""
    return _quoted(text).replace("$", "$$")
