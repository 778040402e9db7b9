"""``pharos keys``: make, list and withdraw the keys of clients.

A key is printed once, on standard output and alone, so that a script can take it; everything else
goes to standard error.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from ..sources import ConfigurationError, Problem, load_settings
from .key_file import KeyFile

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["run"]

_NO_FILE = Problem(
    subject="api_keys_file",
    text="is not set, so there is nowhere to keep keys: --api-keys-file FILE here and for serve, "
    "PHAROS_API_KEYS_FILE for both, or api_keys_file in pharos.toml",
)
_AGAIN = "A server that runs already reads it at its next start."


def run(arguments: Sequence[str]) -> None:
    """Run one of the three and print what it did.

    Raises:
        ConfigurationError: There is no file of keys, or it cannot be used.
    """
    chosen = _parser().parse_args(arguments)
    given = chosen.api_keys_file
    settings = load_settings(["--api-keys-file", given] if given else [])
    if settings.api_keys_file is None:
        raise ConfigurationError([_NO_FILE])
    path = settings.api_keys_file
    file = KeyFile(path)
    if chosen.action == "add":
        print(file.add(chosen.name))  # noqa: T201 - the key, for a person or a pipe
        _say(f"{chosen.name}: this key is not shown again. Its hash is in {path}. {_AGAIN}")
    elif chosen.action == "remove":
        file.remove(chosen.name)
        _say(f"{chosen.name} is withdrawn. {_AGAIN}")
    else:
        for key in file.read():
            print(key.name)  # noqa: T201 - one a line, for a person or a pipe


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pharos keys",
        description="Make, list and withdraw the keys that clients of /v1 send. The file holds "
        "names and hashes; a key is printed once, when it is made.",
    )
    file = argparse.ArgumentParser(add_help=False)
    file.add_argument("--api-keys-file", metavar="FILE", help="as for pharos serve")
    actions = parser.add_subparsers(dest="action", required=True, metavar="add|list|remove")
    add = actions.add_parser("add", parents=[file], help="make a key and print it")
    actions.add_parser("list", parents=[file], help="print the names")
    remove = actions.add_parser("remove", parents=[file], help="withdraw a key")
    for each in (add, remove):
        each.add_argument("name", metavar="NAME", help="who has the key, for your own use")
    return parser


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - for the person beside the pipe
