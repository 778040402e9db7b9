"""``pharos service print``: the file of a service manager, for this machine, on standard output."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..sources import ConfigurationError, add_flags, load_settings
from .launchd import LABEL, launchd_plist
from .service import service_of
from .systemd import systemd_unit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["print_service"]

EXIT_USAGE = 2

_EPILOG = (
    "The flags of `pharos serve` follow, and go into the file, with the PHAROS_ variables that are "
    "set now. What it runs is this installation, in this directory."
)


def print_service(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> int:
    """Render the file and say where it belongs; return the exit code."""
    manager = "launchd" if sys.platform == "darwin" else "systemd"
    if arguments and not arguments[0].startswith("-"):
        manager, *arguments = arguments
    if manager not in _MEND:
        sys.stderr.write(f"pharos: {manager!r} is no service manager: systemd or launchd\n")
        return EXIT_USAGE
    chosen, rest = _parser().parse_known_args(arguments)
    if chosen.help:
        full = _parser()
        add_flags(full)
        sys.stdout.write(full.format_help())
        return 0
    try:
        settings = load_settings(rest)
    except ConfigurationError as error:
        sys.stderr.write(error.report() + "\n")
        return EXIT_USAGE
    user = (chosen.user or getpass.getuser()) if chosen.system else ""
    service, left_out = service_of(rest, settings, environment, user=user)
    if manager == "launchd":
        logs = Path("/Library/Logs") if user else Path.home() / "Library" / "Logs"
        sys.stdout.write(launchd_plist(service, log=str(logs / "pharos.log")))
    else:
        sys.stdout.write(systemd_unit(service))
    sys.stdout.flush()
    sys.stderr.write(f"pharos: this belongs in {_place(manager, user)}\n")
    if user == "root":
        sys.stderr.write("pharos: it would run as root: name a user of its own with --user\n")
    for name in left_out:
        sys.stderr.write(f"pharos: {name} is set here but not in the file: {_MEND[manager]}\n")
    return 0


_MEND = {
    "systemd": "put it into pharos/pharos.env, which the unit reads",
    "launchd": "put it into pharos.toml, or into EnvironmentVariables of a file that others "
    "cannot read",
}


def _place(manager: str, user: str) -> str:
    """Return where the service manager looks for such a file."""
    if manager == "launchd":
        return (
            f"{'' if user else '~'}/Library/Launch{'Daemons' if user else 'Agents'}/{LABEL}.plist"
        )
    return "/etc/systemd/system/pharos.service" if user else "~/.config/systemd/user/pharos.service"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pharos service print",
        usage="pharos service print [systemd|launchd] [--system [--user NAME]] [--port PORT] [...]",
        description="Print the file with which a service manager runs `pharos serve`: systemd or "
        "launchd, this system's by default.",
        epilog=_EPILOG,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--system",
        action="store_true",
        help="a service of the machine rather than of your session",
    )
    parser.add_argument("--user", metavar="NAME", help="who runs it with --system; you by default")
    parser.add_argument("-h", "--help", action="store_true", help="say this")
    return parser
