"""API keys: a name for people, a digest for the comparison, the key itself nowhere."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ApiKey", "find_key"]


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One client's key, as the server holds it."""

    name: str
    """What the operator calls it. Shown in logs; says nothing of the key."""
    digest: bytes
    """SHA-256 of the key's UTF-8 form. Keys are long and random, so a fast digest protects them;
    it has one length, so that comparing says nothing of the key's."""

    @classmethod
    def of(cls, name: str, key: str) -> ApiKey:
        """Return the entry for a key in plain text."""
        return cls(name, hashlib.sha256(key.encode()).digest())


def find_key(keys: Sequence[ApiKey], given: bytes) -> int | None:
    """Return the place of the key that a client sent, None where there is none like it.

    Compares with all of them in constant time, so that the time says neither
    how near a guess was nor which key it was.
    """
    digest = hashlib.sha256(given).digest()
    found = None
    for place, key in enumerate(keys):
        if hmac.compare_digest(digest, key.digest):
            found = place
    return found
