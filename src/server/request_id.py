"""The id of a request: the client's own where it can stand in a log, else a new one."""

from __future__ import annotations

import random
import re

__all__ = ["choose_request_id"]

_ALLOWED = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def _draw() -> int:
    """Return 96 bits that no other request has. Nothing has to be kept from guessing them.

    The system's own source of chance is a system call, after which another thread may run.
    """
    return random.getrandbits(96)


def choose_request_id(given: str = "") -> str:
    """Return the id that a request brought, or a new one where it brought none that can be used."""
    return given if _ALLOWED.fullmatch(given) else f"req_{_draw():024x}"
