"""What the weight files of a model directory say about themselves, read without loading them.

A safetensors file begins with a table of its tensors: it tells whether the
file is whole, and how much memory the model takes. Reading it costs
milliseconds; finding out by loading costs minutes, or the process: a failed
allocation on the CPU is a segmentation fault.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...resilience.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Weights", "inspect_weights", "read_json"]

_MAX_HEADER = 100_000_000
"""Bytes; the safetensors library's own bound of the table."""

_PACKED_PER_INT32 = 8
"""4-bit values in one element of an AWQ or GPTQ tensor."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The weight files of a model directory."""

    files: tuple[Path, ...]
    stored_bytes: int
    """What the tensors take as they are."""
    float32_bytes: int
    """What they would take, dequantized, as float32."""
    is_float32: bool
    """Whether nothing is gained by expanding: all tensors are float32 already."""


def inspect_weights(directory: Path, config: dict[str, Any]) -> Weights:
    """Read the tables of all weight files and compare them with the files' sizes.

    Args:
        directory: A model directory as mlx-lm loads it.
        config: Its ``config.json``.

    Raises:
        ModelError: No safetensors, one is missing from the index, or damaged.
    """
    files = tuple(sorted(directory.glob("model*.safetensors")))
    _check_index(directory, {path.name for path in files})
    if not files:
        message = f"{directory} holds no model*.safetensors. {_instead_of_safetensors(directory)}"
        raise ModelError(message)
    stored = 0
    elements = 0
    kinds: set[str] = set()
    for path in files:
        table = _read_table(path)
        for name, entry in table.items():
            stored += entry["data_offsets"][1] - entry["data_offsets"][0]
            elements += _elements(name, entry, table, config)
            kinds.add(entry["dtype"])
    return Weights(files, stored, 4 * elements, kinds == {"F32"})


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of the model.

    Raises:
        ModelError: The file is missing, unreadable or holds no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or 'no such file'}.") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged: it is not valid JSON. Fetch it again.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is damaged: it holds no JSON object. Fetch it again.")
    return content


def _read_table(path: Path) -> dict[str, Any]:
    """Return the tensor table of a safetensors file whose size agrees with it."""
    size = path.stat().st_size
    damaged = ModelError(f"{path} is damaged: its table of tensors cannot be read. Fetch it again.")
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, _MAX_HEADER):
                raise damaged
            table = json.loads(file.read(length))
        table.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in table.values()), default=0)
    except (OSError, ValueError, struct.error, AttributeError, KeyError, TypeError) as error:
        raise damaged from error
    if size != 8 + length + end:
        raise ModelError(
            f"{path} is damaged: it has {size} bytes where its table asks for {8 + length + end}. "
            "Fetch it again."
        )
    return dict(table)


def _elements(
    name: str, entry: dict[str, Any], table: dict[str, Any], config: dict[str, Any]
) -> int:
    """Return how many numbers of the model a stored tensor stands for."""
    size = int(math.prod(entry["shape"]))
    module, _, part = name.rpartition(".")
    scales = table.get(f"{module}.scales")
    if part == "weight" and scales is not None:
        quantization = config.get("quantization") or config.get("quantization_config") or {}
        own = quantization.get(module)
        group = (own if isinstance(own, dict) else quantization).get("group_size", 32)
        return int(math.prod(scales["shape"])) * int(group)
    if part in ("scales", "biases") and f"{module}.weight" in table:
        return 0
    if part == "qweight":
        return size * _PACKED_PER_INT32
    return size


def _check_index(directory: Path, present: set[str]) -> None:
    """Raise where the index names a file that is not there."""
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return
    named = read_json(index).get("weight_map", {})
    missing = sorted(set(named.values()) - present) if isinstance(named, dict) else []
    if missing:
        raise ModelError(
            f"{directory} is incomplete: {missing[0]} is missing"
            + (f", and {len(missing) - 1} more files." if len(missing) > 1 else ".")
        )


def _instead_of_safetensors(directory: Path) -> str:
    """Return a sentence about what the directory holds in place of safetensors."""
    if any(directory.glob("*.gguf")):
        return "To serve a .gguf file, name the file itself."
    if any(directory.glob("*.bin")):
        return "PyTorch's .bin weights are not supported: convert them with mlx_lm.convert."
    return "A model directory has config.json, model*.safetensors and a tokenizer."
