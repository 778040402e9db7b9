"""What others say, as a line of the log may have it."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str, longest: int) -> str:
    """Return the beginning of a text in one line, without what would steer a terminal.

    Args:
        text: Of anybody, such as a collector's answer.
        longest: Characters at most.
    """
    return "".join(each if each.isprintable() else " " for each in text[:longest]).strip()
