"""Load a shared library under the plain names of its functions, in memory.

The OpenBLAS that NumPy's makers publish calls its functions ``scipy_cblas_sgemm``
and so on, so that two of them can live in one process; whoever asks for
``cblas_sgemm`` does not find it. The name of a symbol is an offset into a table of
strings, so one that begins six bytes later is the name without the prefix. What
finds symbols is a table of hashes of their names: it is replaced by one of the
older, simpler kind (``DT_HASH``), which fits into its place. Nothing else changes.
The copy lives in an anonymous file and never touches the disk. Linux only, 64
bits, little-endian (x86-64, aarch64).

The formats are those of the System V ABI, "Object Files" and "Hash Table", and of
the GNU hash section as glibc's ``elf/dl-lookup.c`` reads it.
"""

from __future__ import annotations

import ctypes
import os
import struct
from mmap import ACCESS_READ, mmap
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Edit", "load_without_prefix", "without_prefix"]

_HEADER = b"\x7fELF\x02\x01"
"""Magic number, 64 bits, little-endian."""
_PT_LOAD = 1
_PT_DYNAMIC = 2
_DT_HASH = 4
_DT_STRTAB = 5
_DT_SYMTAB = 6
_DT_STRSZ = 10
_DT_GNU_HASH = 0x6FFFFEF5
_SYMBOL_BYTES = 24
_MFD_CLOEXEC = 1


class Edit(NamedTuple):
    """Bytes of a file that others take the place of."""

    at: int
    content: bytes


class _Entry(NamedTuple):
    """One of the dynamic section."""

    at: int
    """Where in the file."""
    value: int
    """A size, or an address as an offset in the file."""


class _HashTable(NamedTuple):
    """A GNU hash section: where it is, what it takes, and how many symbols there are."""

    at: int
    size: int
    symbols: int


def without_prefix(library: bytes | mmap, prefix: str) -> list[Edit]:
    """Return what to overwrite in an ELF library to take the prefix from its dynamic symbols.

    Raises:
        ValueError: It is no such library, or none of its symbols has the prefix.
    """
    if library[: len(_HEADER)] != _HEADER:
        msg = "not a 64-bit little-endian ELF file"
        raise ValueError(msg)
    try:
        entries = _dynamic_entries(library)
        table = _gnu_hash_table(library, entries[_DT_GNU_HASH].value)
        symbols_at, strings_at = entries[_DT_SYMTAB].value, entries[_DT_STRTAB].value
        symbols = bytearray(library[symbols_at : symbols_at + _SYMBOL_BYTES * table.symbols])
        strings = library[strings_at : strings_at + entries[_DT_STRSZ].value]
        names = _rename(symbols, strings, prefix.encode("ascii"))
    except (struct.error, KeyError, IndexError, StopIteration) as error:
        msg = "its tables of symbols cannot be read"
        raise ValueError(msg) from error
    return [
        Edit(symbols_at, bytes(symbols)),
        Edit(table.at, _system_v_table(names, table.size)),
        Edit(entries[_DT_GNU_HASH].at, struct.pack("<q", _DT_HASH)),
    ]


def load_without_prefix(path: Path, prefix: str, mode: int) -> ctypes.CDLL:
    """Load a copy of the library at ``path`` whose symbols have lost their prefix.

    It takes 50 ms for 24 MB on a slow machine, most of it the kernel's to copy them.

    Args:
        path: The library.
        prefix: ASCII, for example ``scipy_``.
        mode: Of ``dlopen``, for example ``ctypes.RTLD_GLOBAL``.

    Raises:
        OSError: It cannot be read or loaded.
        ValueError: See :func:`without_prefix`.
    """
    descriptor = _anonymous_file(path.name)
    # Not closed, ever: the linker knows a library by its path, which must not become another's.
    with path.open("rb") as source, os.fdopen(descriptor, "wb", closefd=False) as copy:
        with mmap(source.fileno(), 0, access=ACCESS_READ) as library:
            edits = without_prefix(library, prefix)
        left = os.fstat(source.fileno()).st_size
        while sent := os.sendfile(copy.fileno(), source.fileno(), None, left):
            left -= sent
        for edit in edits:
            os.pwrite(copy.fileno(), edit.content, edit.at)
        return ctypes.CDLL(f"/proc/self/fd/{copy.fileno()}", mode)


def _anonymous_file(name: str) -> int:
    """Return the descriptor of a new file in memory.

    Raises:
        OSError: The system gives none.
    """
    create = getattr(os, "memfd_create", None)
    if create is not None:
        return int(create(name))
    # Some builds of Python lack it, as they were made for systems that are older than this one.
    library = ctypes.CDLL(None, use_errno=True)
    descriptor: int = library.memfd_create(os.fsencode(name), _MFD_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "no file in memory")
    return descriptor


def _dynamic_entries(library: bytes | mmap) -> dict[int, _Entry]:
    """Return the entries of the dynamic section that tell where symbols are, by their tags."""
    (table,) = struct.unpack_from("<Q", library, 32)
    entry_size, count = struct.unpack_from("<HH", library, 54)
    segments: list[tuple[int, int, int]] = []
    dynamic = range(0)
    for index in range(count):
        at = table + index * entry_size
        kind, _, offset, address, _, size = struct.unpack_from("<IIQQQQ", library, at)
        if kind == _PT_LOAD:
            segments.append((address, size, offset))
        elif kind == _PT_DYNAMIC:
            dynamic = range(offset, offset + size, 16)
    entries: dict[int, _Entry] = {}
    for at in dynamic:
        tag, value = struct.unpack_from("<qQ", library, at)
        if tag in {_DT_STRTAB, _DT_SYMTAB, _DT_GNU_HASH}:
            place = next(
                offset + value - address
                for address, size, offset in segments
                if address <= value < address + size
            )
            entries[tag] = _Entry(at, place)
        elif tag == _DT_STRSZ:
            entries[tag] = _Entry(at, value)
        elif tag == _DT_HASH:
            msg = "it has two tables of hashes"
            raise ValueError(msg)
    return entries


def _gnu_hash_table(library: bytes | mmap, at: int) -> _HashTable:
    """Measure the table: its last chain ends with the last symbol, whose hash is odd."""
    buckets, first, bloom_words, _ = struct.unpack_from("<4I", library, at)
    buckets_at = at + 16 + 8 * bloom_words
    chains_at = buckets_at + 4 * buckets
    last = max(struct.unpack_from(f"<{buckets}I", library, buckets_at))
    while not struct.unpack_from("<I", library, chains_at + 4 * (last - first))[0] & 1:
        last += 1
    return _HashTable(at, chains_at + 4 * (last + 1 - first) - at, last + 1)


def _rename(symbols: bytearray, strings: bytes, prefix: bytes) -> list[bytes]:
    """Take the prefix from the symbols' names; return all names in the symbols' order."""
    names = []
    renamed = 0
    for at in range(0, len(symbols), _SYMBOL_BYTES):
        (begin,) = struct.unpack_from("<I", symbols, at)
        name = strings[begin : strings.index(b"\0", begin)]
        if name.startswith(prefix):
            renamed += 1
            name = name.removeprefix(prefix)
            struct.pack_into("<I", symbols, at, begin + len(prefix))
        names.append(name)
    if not renamed:
        msg = f"none of its symbols begins with {prefix.decode()}"
        raise ValueError(msg)
    return names


def _system_v_table(names: list[bytes], size: int) -> bytes:
    """Return a hash table of the System V ABI over all names, in exactly ``size`` bytes."""
    count = size // 4 - 2 - len(names)
    if count < 1:
        msg = "its table of hashes is too small to be replaced"
        raise ValueError(msg)
    buckets, chains = [0] * count, [0] * len(names)
    for index, name in enumerate(names):
        if index:  # the first symbol is none
            bucket = _system_v_hash(name) % count
            chains[index], buckets[bucket] = buckets[bucket], index
    words = [count, len(names), *buckets, *chains]
    return struct.pack(f"<{len(words)}I", *words).ljust(size, b"\0")


def _system_v_hash(name: bytes) -> int:
    value = 0
    for byte in name:
        value = (value << 4) + byte
        high = value & 0xF0000000
        value = (value ^ (high >> 24)) & 0x0FFFFFFF
    return value
