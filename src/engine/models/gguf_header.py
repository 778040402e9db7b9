"""Read what a GGUF file says of itself: metadata and the table of tensors. No mlx, no weights.

The layout (little-endian, versions 2 and 3): magic, version, number of tensors,
number of metadata entries; the entries (key, type, value); the table (name,
shape, type, offset); then the tensors, from the next multiple of the
alignment. Strings are a 64-bit length and UTF-8.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...resilience.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SUPPORTED_TYPES", "GgufHeader", "GgufTensor", "check_supported", "read_header"]

SUPPORTED_TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 8: "Q8_0"}
"""Tensor types that become an MLX model without loss, by their number in the file."""

_OTHER_TYPES = {
    6: "Q5_0",
    7: "Q5_1",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    29: "IQ1_M",
    30: "BF16",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}
_BLOCK_BYTES = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 8: (32, 34)}
"""Elements and bytes of one block, by type."""

_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING = 8
_ARRAY = 9
_VERSIONS = (2, 3)
_MAX_ENTRIES = 1 << 24
"""More entries or array elements than this are a damaged count."""
_MAX_DIMENSIONS = 8
_MAX_EXTENT = 2**31 - 1
"""MLX counts the rows of a tensor in 32 bits."""
_MAX_ALIGNMENT = 1 << 20
_MAX_DEPTH = 8
"""Arrays in arrays."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One line of the tensor table."""

    name: str
    shape: tuple[int, ...]
    """Rows first, as everywhere but in the file."""
    type: int
    offset: int
    """Bytes from the start of the data."""

    @property
    def type_name(self) -> str:
        """The type's name as llama.cpp writes it."""
        return SUPPORTED_TYPES.get(self.type) or _OTHER_TYPES.get(self.type, f"type {self.type}")

    @property
    def stored_bytes(self) -> int:
        """The size in the file; 0 for a type that is not supported."""
        elements, size = _BLOCK_BYTES.get(self.type, (1, 0))
        return math.prod(self.shape) // elements * size


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Everything before the weights."""

    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]
    data_offset: int
    """Where in the file the weights begin."""

    @property
    def architecture(self) -> str:
        """``general.architecture``; empty where it is missing."""
        return str(self.metadata.get("general.architecture", ""))


class _Cursor:
    """A position in the mapped file, moved by reading."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.at = 0

    def scalar(self, form: str) -> Any:  # noqa: ANN401 - the type is the form's
        (value,) = struct.unpack_from(form, self._data, self.at)
        self.at += struct.calcsize(form)
        return value

    def count(self) -> int:
        value = int(self.scalar("<Q"))
        if value > _MAX_ENTRIES:
            msg = "implausible count"
            raise ValueError(msg)
        return value

    def text(self) -> str:
        size = int(self.scalar("<Q"))
        if size > len(self._data) - self.at:
            msg = "string beyond the end"
            raise ValueError(msg)
        raw = self._data[self.at : self.at + size]
        self.at += size
        # A token may be any bytes; lone ones survive the way to the tokenizer.
        return raw.decode("utf-8", "surrogateescape")

    def value(self, kind: int, depth: int = 0) -> Any:  # noqa: ANN401 - written in the file
        if depth > _MAX_DEPTH:
            msg = "arrays too deep"
            raise ValueError(msg)
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        inner = int(self.scalar("<I"))
        size = self.count()
        if inner in (_STRING, _ARRAY):
            return [self.value(inner, depth + 1) for _ in range(size)]
        form = f"<{size}{_SCALARS[inner][1]}"
        values = struct.unpack_from(form, self._data, self.at)
        self.at += struct.calcsize(form)
        return list(values)


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file and check that the file holds all its tensors.

    Raises:
        ModelError: It is no GGUF file, of an unknown version, or cut or damaged.
    """
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            if data[:4] != b"GGUF":
                raise ModelError(f"{path} is no GGUF file: it does not begin with GGUF.")
            header = _parse(path, data)
            size = len(data)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, struct.error, RecursionError) as error:
        raise ModelError(
            f"{path} is damaged: its header cannot be read. Fetch it again."
        ) from error
    end = max((tensor.offset + tensor.stored_bytes for tensor in header.tensors), default=0)
    if size < header.data_offset + end:
        raise ModelError(
            f"{path} is damaged: it has {size} bytes where its table asks for "
            f"{header.data_offset + end}. Fetch it again."
        )
    return header


def check_supported(path: Path, header: GgufHeader) -> None:
    """Raise where the architecture or a tensor's type cannot be converted, and say which can."""
    if header.architecture != "llama":
        raise ModelError(
            f"{path.name} has the architecture {header.architecture or 'unknown'!r}. Of .gguf "
            "files the llama family is supported; for others serve the model's MLX safetensors."
        )
    experts = header.metadata.get("llama.expert_count", 0)
    if experts:
        raise ModelError(
            f"{path.name} is a mixture of {experts} experts, which is not supported as .gguf; "
            "serve the model's MLX safetensors."
        )
    unknown = sorted({t.type_name for t in header.tensors if t.type not in SUPPORTED_TYPES})
    if unknown:
        raise ModelError(
            f"{path.name} holds tensors of the type {', '.join(unknown)}. Supported are "
            f"{', '.join(sorted(SUPPORTED_TYPES.values()))}: choose a file quantized as Q4_0, "
            "Q4_1 or Q8_0."
        )


def _parse(path: Path, data: mmap.mmap) -> GgufHeader:
    cursor = _Cursor(data)
    cursor.at = 4
    version = cursor.scalar("<I")
    if version not in _VERSIONS:
        raise ModelError(f"{path} has the GGUF version {version}; supported are 2 and 3.")
    tensor_count, entry_count = cursor.count(), cursor.count()
    metadata: dict[str, Any] = {}
    for _ in range(entry_count):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.scalar("<I"))
    tensors = []
    for _ in range(tensor_count):
        name = cursor.text()
        rank = cursor.scalar("<I")
        dimensions = [cursor.scalar("<Q") for _ in range(min(rank, _MAX_DIMENSIONS + 1))]
        if rank > _MAX_DIMENSIONS or any(extent > _MAX_EXTENT for extent in dimensions):
            msg = "implausible shape"
            raise ValueError(msg)
        kind, offset = cursor.scalar("<I"), cursor.scalar("<Q")
        tensors.append(GgufTensor(name, tuple(reversed(dimensions)), kind, offset))
    if len({tensor.name for tensor in tensors}) < len(tensors):
        msg = "a name twice"
        raise ValueError(msg)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= _MAX_ALIGNMENT:
        msg = "implausible alignment"
        raise ValueError(msg)
    start = math.ceil(cursor.at / alignment) * alignment
    return GgufHeader(metadata, tuple(tensors), start)
