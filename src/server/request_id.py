"""The id of a request: the client's own where it can stand in a log, else a new one."""

from __future__ import annotations

import re
import secrets

__all__ = ["choose_request_id"]

_ALLOWED = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def choose_request_id(given: str = "") -> str:
    """Return the id that a request brought, or a new one where it brought none that can be used."""
    return given if _ALLOWED.fullmatch(given) else f"req_{secrets.token_hex(12)}"
