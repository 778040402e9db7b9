"""Permissions of files, for tests that root runs as well: nothing is forbidden to root otherwise."""

from __future__ import annotations

import ctypes
import os

__all__ = ["obey_permissions"]

_PR_CAPBSET_DROP = 24
_CAP_DAC_OVERRIDE = 1
_libc = ctypes.CDLL(None, use_errno=True)


def obey_permissions() -> None:
    """Let permissions to write count for what this process runs next, whoever it is. Linux only.

    Raises:
        OSError: Root may not give that up here.
    """
    if os.geteuid() == 0 and _libc.prctl(_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
