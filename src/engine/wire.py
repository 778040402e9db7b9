"""What everything that crosses the pipe is made of: MessagePack arrays, by ``msgspec``."""

from __future__ import annotations

import msgspec

__all__ = ["Message", "Value"]


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of everything that has a tag on the wire."""


class Value(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of plain values inside messages."""
