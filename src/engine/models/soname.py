"""Give a shared library another name, in memory.

A wheel that carries libgfortran carries it under a name of its own
(``libgfortran-f7379c93.so.5.0.0``), so that a library which asks for
``libgfortran.so.5`` does not find it, even when it is loaded already. The
dynamic linker knows a loaded library by the name written *in* it
(``DT_SONAME``), not by its path: a copy in which that one string is replaced
satisfies everything loaded later. The copy lives in an anonymous file and
never touches the disk. Linux only, 64 bits, little-endian (x86-64, aarch64).
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["load_as", "with_soname"]

_HEADER = b"\x7fELF\x02\x01"
"""Magic number, 64 bits, little-endian."""
_PT_LOAD = 1
_PT_DYNAMIC = 2
_DT_STRTAB = 5
_DT_SONAME = 14


def with_soname(library: bytes, soname: str) -> bytes:
    """Return the ELF library under another soname, which must not be longer than its own.

    Raises:
        ValueError: It is no such library, or its own name is shorter.
    """
    if not library.startswith(_HEADER):
        msg = "not a 64-bit little-endian ELF file"
        raise ValueError(msg)
    try:
        start = _soname_offset(library)
        end = library.index(b"\0", start)
    except (struct.error, KeyError, StopIteration) as error:
        msg = "no soname found in the file"
        raise ValueError(msg) from error
    name = soname.encode("ascii")
    if len(name) > end - start:
        msg = "the library's own soname is too short to be replaced"
        raise ValueError(msg)
    return library[:start] + name.ljust(end - start, b"\0") + library[end:]


def load_as(path: Path, soname: str) -> ctypes.CDLL:
    """Load a copy of the library at ``path`` that answers to ``soname``.

    Raises:
        OSError: It cannot be read or loaded.
        ValueError: See :func:`with_soname`.
    """
    content = with_soname(path.read_bytes(), soname)
    descriptor = os.memfd_create(soname)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(content)
        return ctypes.CDLL(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _soname_offset(library: bytes) -> int:
    """Return where in the file the soname begins."""
    (table,) = struct.unpack_from("<Q", library, 32)
    entry_size, entries = struct.unpack_from("<HH", library, 54)
    segments: list[tuple[int, int, int]] = []
    dynamic = range(0)
    for index in range(entries):
        at = table + index * entry_size
        kind, _, offset, address, _, size = struct.unpack_from("<IIQQQQ", library, at)
        if kind == _PT_LOAD:
            segments.append((address, size, offset))
        elif kind == _PT_DYNAMIC:
            dynamic = range(offset, offset + size, 16)
    tags: dict[int, int] = {}
    for at in dynamic:
        tag, value = struct.unpack_from("<qQ", library, at)
        tags.setdefault(tag, value)
    strings = tags[_DT_STRTAB]
    begin = next(
        offset + strings - address
        for address, size, offset in segments
        if address <= strings < address + size
    )
    return begin + tags[_DT_SONAME]
