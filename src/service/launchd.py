"""A property list for launchd, as described in launchd.plist(5)."""

from __future__ import annotations

import plistlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .service import Service

__all__ = ["LABEL", "launchd_plist"]

LABEL = "local.pharos"
_THROTTLE_SECONDS = 30
_OPEN_FILES = 8192


def launchd_plist(service: Service, *, log: str) -> str:
    """Return the property list of a LaunchDaemon, or of a LaunchAgent where no user is named.

    Args:
        service: What to run.
        log: The file that standard error goes to; launchd makes it, and never cuts it.
    """
    keys: dict[str, Any] = {
        "Label": LABEL,
        "ProgramArguments": list(service.command),
        "WorkingDirectory": str(service.directory),
        "EnvironmentVariables": dict(service.environment),
        "RunAtLoad": True,
        # Started again unless it ended well. launchd knows no exit code that means "do not try
        # again", so wrong settings are tried every half minute, and the log says what to mend.
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": _THROTTLE_SECONDS,
        # launchd's own limit is 20 s: it would kill a large engine before the grace is over.
        "ExitTimeOut": service.stop_seconds,
        # Else macOS slows the process down as it does background work.
        "ProcessType": "Interactive",
        "SoftResourceLimits": {"NumberOfFiles": _OPEN_FILES},
        "HardResourceLimits": {"NumberOfFiles": _OPEN_FILES},
        "StandardErrorPath": log,
        "Umask": 0o077,
    }
    if service.user:
        keys["UserName"] = service.user
    return plistlib.dumps(keys, sort_keys=False).decode().rstrip() + "\n"
