"""Whether strangers could use the model as it is about to be served."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .address import is_loopback
from .errors import ValidationError

if TYPE_CHECKING:
    from ..settings import Settings

__all__ = ["OPEN_MEND", "check_access", "exposure"]

OPEN_MEND = (
    "set PHAROS_API_KEY or --api-keys-file, or listen on 127.0.0.1; where the network itself keeps "
    "strangers out, --allow-open-network"
)


def exposure(settings: Settings) -> str:
    """Return a sentence part that says who could; empty where nobody but this machine can."""
    has_key = settings.api_key is not None or settings.api_keys_file is not None
    if has_key or is_loopback(settings.host):
        return ""
    return f"{settings.host}: everybody who reaches it could use the model, as no key is asked for"


def check_access(settings: Settings) -> None:
    """Refuse an address on a network without a key, unless the operator wants just that.

    Raises:
        ValidationError: Strangers could use the model, and nobody said that they may.
    """
    text = "" if settings.allow_open_network else exposure(settings)
    if text:
        raise ValidationError("host", f"{text}; {OPEN_MEND}")
