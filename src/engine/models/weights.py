"""What the weight files of a model directory say about themselves, read without loading them.

A safetensors file begins with a table of its tensors: it tells whether the
file is whole, and how much memory the model takes. Reading it costs
milliseconds; finding out by loading costs minutes, or the process: a failed
allocation on the CPU is a segmentation fault.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...resilience.errors import ModelError
from .tensor_table import read_table

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Weights", "inspect_weights", "read_json"]

_MAX_JSON = 32 * 1024 * 1024
"""Bytes of a JSON file; the index of the largest models has a third of it."""

_USUAL_GROUP = 32
_PACKED_PER_INT32 = 8
"""4-bit values in one element of an AWQ or GPTQ tensor."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The weight files of a model directory."""

    files: tuple[Path, ...]
    tensors: int
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
    stored = count = elements = 0
    kinds: set[str] = set()
    for path in files:
        table = read_table(path)
        count += len(table)
        for name, entry in table.items():
            stored += entry["data_offsets"][1] - entry["data_offsets"][0]
            elements += _elements(name, entry, table, config)
            kinds.add(entry["dtype"])
    return Weights(files, count, stored, 4 * elements, kinds == {"F32"})


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of the model.

    Raises:
        ModelError: The file is missing, unreadable or holds no object.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_JSON + 1)
        if len(text) > _MAX_JSON:
            raise ModelError(f"{path} is damaged: it is larger than any model's. Fetch it again.")
        content = json.loads(text.decode("utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or 'no such file'}.") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged: it is not valid JSON. Fetch it again.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is damaged: it holds no JSON object. Fetch it again.")
    return content


def _elements(
    name: str, entry: dict[str, Any], table: dict[str, Any], config: dict[str, Any]
) -> int:
    """Return how many numbers of the model a stored tensor stands for."""
    size = int(math.prod(entry["shape"]))
    module, _, part = name.rpartition(".")
    scales = table.get(f"{module}.scales")
    if part == "weight" and scales is not None:
        return int(math.prod(scales["shape"])) * _group_size(module, config)
    if part in ("scales", "biases") and f"{module}.weight" in table:
        return 0
    if part == "qweight":
        return size * _PACKED_PER_INT32
    return size


def _group_size(module: str, config: dict[str, Any]) -> int:
    """Return how many values share a scale; 32 where the config does not say it in a number."""
    quantization = config.get("quantization") or config.get("quantization_config")
    if not isinstance(quantization, dict):
        return _USUAL_GROUP
    own = quantization.get(module)
    size = (own if isinstance(own, dict) else quantization).get("group_size")
    return size if type(size) is int and size > 0 else _USUAL_GROUP


def _check_index(directory: Path, present: set[str]) -> None:
    """Raise where the index names a file that is not there."""
    path = directory / "model.safetensors.index.json"
    if not path.is_file():
        return
    named = read_json(path).get("weight_map", {})
    if not isinstance(named, dict) or not all(isinstance(each, str) for each in named.values()):
        raise ModelError(f"{path} is damaged: its weight_map names no files. Fetch it again.")
    missing = sorted(set(named.values()) - present)
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
