"""The table of tensors at the head of a safetensors file, read as if its writer meant harm.

The layout: the table's length in 8 bytes, little-endian; the table as a JSON object of names to
``dtype``, ``shape`` and ``data_offsets``; then the tensors, one after the other without a gap. A
table that says otherwise is damaged or made up: whoever reads by it reads beside the tensor.
"""

from __future__ import annotations

import json
import math
import struct
from typing import TYPE_CHECKING, Any, cast

from ...resilience.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_table"]

_MAX_TABLE = 32 * 1024 * 1024
"""Bytes: the table of some 200,000 tensors. The safetensors library takes 100 MB, and Python needs
ten times that to read it."""
_MAX_EXTENT = 2**31 - 1
"""MLX counts the rows of a tensor in 32 bits."""
_MAX_DIMENSIONS = 32
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}


class _TableError(Exception):
    """What is wrong with the table, as the part of a sentence."""


def read_table(path: Path) -> dict[str, dict[str, Any]]:
    """Return the table of a safetensors file that is whole, by tensor.

    Raises:
        ModelError: The file is no safetensors file, cut or too long; or a tensor of it is not
            where its shape and type say, which is named.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length, table = _parsed(file.read(8), size, file.read)
        end = _check_places(table)
    except _TableError as error:
        raise ModelError(f"{path} is damaged: {error}. Fetch it again.") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    if size != 8 + length + end:
        raise ModelError(
            f"{path} is damaged: it has {size} bytes where its table asks for {8 + length + end}. "
            "Fetch it again."
        )
    return table


def _parsed(head: bytes, size: int, read: Any) -> tuple[int, dict[str, dict[str, Any]]]:  # noqa: ANN401 - a file's method
    """Return the table's length and the table, of the right form but not compared with anything."""
    if len(head) < 8:  # noqa: PLR2004 - the length's own bytes
        raise _TableError("it is too short for a table of tensors")
    (length,) = struct.unpack("<Q", head)
    if length > size - 8:
        raise _TableError("its table of tensors is said to be longer than the file")
    if length > _MAX_TABLE:
        raise _TableError(f"its table of tensors has {length} bytes, more than any model's")
    try:
        table = json.loads(read(length), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise _TableError("its table of tensors cannot be read") from None
    if not isinstance(table, dict):
        raise _TableError("its table of tensors cannot be read")
    table.pop("__metadata__", None)
    for name, entry in table.items():
        if not _is_entry(entry):
            raise _TableError(f"the tensor {name[:80]!r} has no type, shape and place")
    return length, cast("dict[str, dict[str, Any]]", table)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _TableError("its table of tensors has a name twice")
    return found


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    shape, place = entry.get("shape"), entry.get("data_offsets")
    return (
        isinstance(shape, list)
        and isinstance(place, list)
        and len(place) == 2  # noqa: PLR2004 - begin and end
        and all(type(number) is int and number >= 0 for number in (*shape, *place))
    )


def _check_places(table: dict[str, dict[str, Any]]) -> int:
    """Raise unless each tensor begins where another ends, and is as long as its shape and type say.

    Returns:
        Where the last one ends, in bytes behind the table.
    """
    end = 0
    for name, entry in sorted(table.items(), key=lambda item: item[1]["data_offsets"]):
        shape, (begin, stop) = entry["shape"], entry["data_offsets"]
        shown = repr(name[:80])
        if entry["dtype"] not in _BITS:
            raise _TableError(f"the tensor {shown} is of an unknown type, {entry['dtype'][:20]!r}")
        if len(shape) > _MAX_DIMENSIONS or any(extent > _MAX_EXTENT for extent in shape):
            raise _TableError(f"the tensor {shown} is larger than any can be")
        if math.prod(shape) * _BITS[entry["dtype"]] != 8 * (stop - begin):
            raise _TableError(f"the tensor {shown} does not take the bytes that its shape asks for")
        if begin != end:
            what = "overlaps another" if begin < end else "leaves a gap before it"
            raise _TableError(f"the tensor {shown} {what}")
        end = stop
    return end
