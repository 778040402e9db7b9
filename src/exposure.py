"""Whether strangers could use the model as it is about to be served."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .settings import Settings

__all__ = ["EXPOSURE_MEND", "exposure"]

EXPOSURE_MEND = "set PHAROS_API_KEY, or listen on 127.0.0.1"


def exposure(settings: Settings) -> str:
    """Return a sentence part that says who could; empty where nobody but this machine can."""
    loopback = settings.host in {"localhost", "::1"} or settings.host.startswith("127.")
    if loopback or settings.api_key is not None:
        return ""
    return f"everybody who reaches {settings.host} can use the model: no key is asked for"
