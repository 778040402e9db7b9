"""What a field of the settings is made of: its description, its reason, its kinds of values."""

from __future__ import annotations

import re
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr

__all__ = [
    "AUTO_SIZE",
    "check_secret",
    "default_cache_dir",
    "expand_home",
    "parse_size",
    "setting",
    "size_or_auto",
    "split_names",
]

AUTO_SIZE = -1
"""The size in bytes that means: let the engine choose."""

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?)(b?)\s*", re.IGNORECASE | re.ASCII)
_MOST_BYTES = 2**60
"""More than any machine has; beyond it a number is a slip of the keyboard."""


def parse_size(value: object) -> object:
    """Turn ``10MiB``, ``1.5 GB`` or ``4096`` into bytes; leave what is no string alone.

    Raises:
        ValueError: The string is not a size.
    """
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value)
    if match is None or (match[3] and not match[2]):
        raise ValueError("should be a number of bytes, or a size such as 512KiB, 10MiB or 2GB")
    base = 1024 if match[3] else 1000
    size = Decimal(match[1]) * base ** " kmgt".index(match[2].lower() or " ")
    if size > _MOST_BYTES:
        raise ValueError("should be a size that a machine can have, such as 512KiB, 10MiB or 2GB")
    return int(size)


def size_or_auto(value: object) -> object:
    """Turn ``auto`` into :data:`AUTO_SIZE`, and a size into bytes."""
    if isinstance(value, bool) or (
        isinstance(value, int | float) and not 0 <= value <= _MOST_BYTES
    ):
        raise ValueError("should be auto, 0 or a size such as 2GiB")
    return AUTO_SIZE if value == "auto" else parse_size(value)


def split_names(value: object) -> object:
    """Turn ``a, b`` into a list; leave what is no string alone."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def default_cache_dir() -> Path:
    """Return where this system keeps what can be fetched again."""
    if sys.platform == "darwin":
        return Path("~/Library/Caches/pharos")
    return Path("~/.cache/pharos")


def setting(
    default: Any,  # noqa: ANN401 - whatever the field is
    description: str,
    *,
    group: str,
    reason: str,
    metavar: str = "",
    flag: bool = True,
    **limits: Any,  # noqa: ANN401 - pydantic's own arguments
) -> Any:  # noqa: ANN401 - takes the place of the field's value
    """Declare a field.

    Args:
        default: Validated like any other value.
        description: What the operator reads in the help.
        group: One of the groups, in whose place the help shows it.
        reason: Why this default.
        metavar: The value's name in the help.
        flag: Whether there is a flag; secrets have none.
        limits: pydantic's own arguments.
    """
    extra: dict[str, Any] = {"group": group, "reason": reason, "metavar": metavar, "flag": flag}
    return Field(default, description=description, json_schema_extra=extra, **limits)


def check_secret(value: SecretStr | None) -> SecretStr | None:
    """Return a key that fits into a header as it is.

    Raises:
        ValueError: It does not.
    """
    if value is not None:
        key = value.get_secret_value()
        if not key or not key.isascii() or not key.isprintable() or key != key.strip():
            raise ValueError("should be printable ASCII without spaces around it")
    return value


def expand_home(value: Path | None) -> Path | None:
    """Return a path with the home directory in place of ``~``.

    Raises:
        ValueError: This user has none.
    """
    try:
        return value.expanduser() if value is not None else None
    except RuntimeError:
        raise ValueError("should not use ~: this user has no home directory") from None
