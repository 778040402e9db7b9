"""Limits of the kernel on a running process: Linux alone can set them from outside."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["limited"]


@contextlib.contextmanager
def limited(process: psutil.Process, kind: int, soft: int) -> Iterator[None]:
    """Lower a limit while the block runs; a process that has died by then keeps none.

    Args:
        process: Whose.
        kind: A constant of :mod:`resource`, such as ``RLIMIT_NOFILE``.
        soft: What it may have.
    """
    before = process.rlimit(kind)
    process.rlimit(kind, (soft, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.rlimit(kind, before)
