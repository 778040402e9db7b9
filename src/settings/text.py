"""What holds for the text of every setting, whatever the setting is.

Variables and flags are text. The libraries read it generously: ``80_80`` and ``8080.0`` as 8080,
``true`` as 1, a host of two spaces as a host. A value that its writer would not recognise is a
mistake, so it is refused before it is read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

__all__ = ["check_text"]

_WHOLE = re.compile(r"-?[0-9]+")
_DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?(e-?[0-9]{1,3})?", re.IGNORECASE)
_LONGEST = 4096
"""Characters of one value; a path is the longest thing that a setting holds."""


def check_text(value: object, info: FieldInfo) -> object:
    """Return a setting's value as it came, if it is written as its kind is.

    Raises:
        ValueError: It is blank, has spaces around it or control characters in it, or is a
            number in a spelling that a reader could take for another.
    """
    if isinstance(value, bool) and {int, float} & {*_kinds(info)}:
        raise ValueError("should be a number, not true or false")
    if not isinstance(value, str) or SecretStr in _kinds(info):
        return value
    if (value or Path in _kinds(info)) and not value.strip():
        raise ValueError("is blank; give it a value or leave it out")
    if value != value.strip():
        raise ValueError("should have no spaces around it")
    if len(value) > _LONGEST:
        raise ValueError(f"should be at most {_LONGEST} characters long")
    if any(ord(character) < ord(" ") or character == "\x7f" for character in value):
        raise ValueError("should have no control characters, such as a line's end")
    return _number(value, info)


def _number(text: str, info: FieldInfo) -> str:
    if float in _kinds(info) and not _DECIMAL.fullmatch(text):
        raise ValueError("should be a number such as 10 or 2.5")
    if int in _kinds(info) and not _has_unit(info) and not _WHOLE.fullmatch(text):
        raise ValueError("should be a whole number such as 8")
    return text


def _has_unit(info: FieldInfo) -> bool:
    extra = info.json_schema_extra
    return isinstance(extra, dict) and extra.get("metavar") == "SIZE"


def _kinds(info: FieldInfo) -> tuple[object, ...]:
    return (info.annotation, *getattr(info.annotation, "__args__", ()))
