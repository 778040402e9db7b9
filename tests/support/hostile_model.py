"""Models that mean harm: with code that leaves a mark, with tensors that are not where they should be."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

from support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "change_json",
    "code_that_leaves",
    "table_and_tensors",
    "table_entry",
    "write_armed_model",
]


def change_json(path: Path, **changes: Any) -> None:
    """Set some fields of a file's object."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def code_that_leaves(canary: Path) -> str:
    """Return Python that writes a file when it is run."""
    return (
        f"from pathlib import Path; Path({str(canary)!r}).write_text('it ran'); class_ = object\n"
    )


def write_armed_model(directory: Path, canary: Path, *, named_in: str) -> Path:
    """Write a model with code that would leave a file, named in one of its files or in none."""
    write_tiny_model(directory)
    (directory / "evil.py").write_text(code_that_leaves(canary))
    classes: dict[str, Any] = {"AutoTokenizer": [None, "evil.Tokenizer"]}
    if named_in == "model_file":
        change_json(directory / "config.json", model_file="evil.py")
    elif named_in == "auto_map":
        classes = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
        change_json(directory / "config.json", auto_map=classes)
    elif named_in == "tokenizer":
        change_json(directory / "tokenizer_config.json", auto_map=classes)
    return directory


def table_and_tensors(table: object, tensors: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file: a table, or bytes in its place, with a length that may be a lie."""
    head = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(head) if length is None else length) + head + tensors


def table_entry(shape: list[Any], begin: Any, end: Any, kind: str = "F32") -> dict[str, Any]:
    """Return what a table says of a tensor."""
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
