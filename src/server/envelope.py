"""What every answer carries: who answers, when, and under which id."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field

from .. import __version__

__all__ = ["Envelope"]


def _now() -> int:
    return int(time.time())


@dataclass(frozen=True, slots=True)
class Envelope:
    """The fields that stay the same over a whole answer."""

    model: str
    """The first served name, whatever name the request used."""
    token: str = field(default_factory=lambda: secrets.token_hex(12))
    """The unique part of the answer's id."""
    created: int = field(default_factory=_now)
    """Seconds since 1970."""
    fingerprint: str = f"pharos-{__version__}"
    """Changes when the same seed may give other text."""
