"""Whether a model directory is one, whole, and harmless: looked at before any library opens it.

Everything that is wrong is found from names, links, small JSON files and the tables of the
weights. Nothing is imported, unpickled or rendered: weights of PyTorch (``.bin``, ``.pt``) are
pickles, which run code when they are read, and they are never read.

The server process uses this module: it imports no mlx.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...resilience.errors import ModelError
from .model_code import check_code
from .weights import inspect_weights, read_json

if TYPE_CHECKING:
    from .model_code import CodePolicy
    from .weights import Weights

__all__ = ["inspect_directory"]

_JSON_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)
"""Files of settings that the libraries read; those of them that are there are checked."""
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
    "*.tiktoken",
    "tiktoken.model",
)
"""What a tokenizer is made of; one of them is enough."""
_CODE = (".py", ".pyc", ".so")
_MOST_ENTRIES = 10_000
_READ_WHOLE = frozenset({".json", ".jinja", ".jsonl", ".model", ".tiktoken", ".txt"})
_MOST_BYTES = 256 * 1024 * 1024
"""Of a file that the libraries read into memory as a whole: several times the largest vocabulary."""
_LAYER_COUNTS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")


def inspect_directory(
    directory: Path, *, code: CodePolicy = "refuse"
) -> tuple[dict[str, Any], Weights]:
    """Return the model's ``config.json`` and what its weight files say of themselves.

    Args:
        directory: A model directory as mlx-lm loads it.
        code: What the operator wants done with code in it.

    Raises:
        ModelError: It is incomplete, damaged, links out of itself, or comes with code. The message
            names the file.
    """
    entries = _entries(directory)
    config = read_json(directory / "config.json")
    rest = [name for name in _JSON_FILES[1:] if (directory / name).is_file()]
    files = {"config.json": config, **{name: read_json(directory / name) for name in rest}}
    scripts = [name for name in entries if name.endswith(_CODE)]
    check_code(directory, scripts, files, code)
    weights = inspect_weights(directory, config)
    if not any(next(directory.glob(pattern), None) for pattern in _TOKENIZERS):
        raise ModelError(
            f"{directory} is incomplete: it holds no tokenizer, such as tokenizer.json."
        )
    _check_counts(directory, config, weights)
    return config, weights


def _entries(directory: Path) -> list[str]:
    """Return the names of all files, after a look at what they are; hidden folders are left out.

    Raises:
        ModelError: A link leads out of the model, something is neither file nor folder, or there
            are more than any model has.
    """
    inside = [directory.resolve()]
    if inside[0].parent.name == "snapshots":  # the Hub's cache keeps the content in blobs
        inside.append(inside[0].parent.parent / "blobs")
    found: list[str] = []
    for place, folders, names in os.walk(directory, onerror=_cannot_read):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (*folders, *names):
            path = Path(place, name)
            _check_entry(path, inside)
            found.append(path.relative_to(directory).as_posix())
        if len(found) > _MOST_ENTRIES:
            raise ModelError(f"{directory} is no model: it holds more than {_MOST_ENTRIES} files.")
    return sorted(found)


def _cannot_read(error: OSError) -> None:
    raise ModelError(f"{error.filename} cannot be read: {error.strerror}.") from error


def _check_entry(path: Path, inside: list[Path]) -> None:
    if path.is_symlink():
        _check_link(path, inside)
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise ModelError(f"{path} is neither a file nor a folder, so it is no model's.")
    if path.suffix in _READ_WHOLE and status.st_size > _MOST_BYTES:
        raise ModelError(f"{path} is damaged: it is larger than any model's. Fetch it again.")


def _check_link(path: Path, inside: list[Path]) -> None:
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        raise ModelError(f"{path} is a link to nothing. Fetch the model again.") from None
    if not any(target.is_relative_to(place) for place in inside):
        raise ModelError(
            f"{path} is a link out of the model, to {target}. Put the file itself in its place, "
            "if you want it served."
        )


def _check_counts(directory: Path, config: dict[str, Any], weights: Weights) -> None:
    """Raise where the config asks for more layers than there are tensors: building them never ends."""
    text = config.get("text_config")
    for source in (config, text if isinstance(text, dict) else {}):
        for name in _LAYER_COUNTS:
            count = source.get(name)
            if isinstance(count, int) and count > max(weights.tensors, 1):
                raise ModelError(
                    f"{directory / 'config.json'} is damaged: {name} is {count}, and the weights "
                    f"have {weights.tensors} tensors in all."
                )
