"""What the operator named as the model: the starter, a directory, a .gguf file or a hub id.

Nothing here imports mlx or the hub's library: the server process uses it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...resilience.errors import ModelError
from .directory import inspect_directory
from .gguf_header import check_supported, read_header
from .hub_cache import complete_snapshot

if TYPE_CHECKING:
    from .model_code import CodePolicy
    from .store import Store

__all__ = ["STARTER_ENTRY", "Source", "classify", "resolve_local"]

STARTER_ENTRY = "starter-smollm2-135m-instruct-q4_1-2"
"""The starter's entry in the store. A change of the conversion gets a new name."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Source:
    """A model as the operator named it, and what kind of name that is."""

    kind: Literal["starter", "directory", "gguf", "hub"]
    name: str
    """As it was written; for ``hub`` the repository's id."""
    path: Path | None = None
    """Absolute, for ``directory`` and ``gguf``."""


def classify(model: str, *, code: CodePolicy = "run") -> Source:
    """Return what kind of source a name is, and check what can be checked without loading.

    Code in a directory is the business of whoever loads it, so it is not looked at unless ``code``
    says what becomes of it. A path that exists is a path; ``org/name`` is a hub id where no such path
    exists. ``starter`` is always the starter: write ``./starter`` for a directory.

    Raises:
        ModelError: It is none of the four, or a path to something that cannot be served.
    """
    if model == "starter":
        return Source("starter", model)
    path = Path(model).expanduser()
    if path.is_dir():
        return _directory(model, path.resolve(), code)
    if path.is_file():
        return _file(model, path.resolve())
    if path.suffix == ".gguf" or model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise ModelError(f"There is no model at {path}.")
    if _HUB_ID.fullmatch(model):
        return Source("hub", model)
    # Imported here: it is needed only for the person who made a mistake.
    from difflib import get_close_matches  # noqa: PLC0415

    if get_close_matches(model.lower(), ["starter"]):
        raise ModelError(f"{model!r} is no model; did you mean starter?")
    raise ModelError(
        f"{model!r} is no model: name 'starter', a directory of MLX safetensors, a .gguf file, "
        "or a hub id of the form organisation/name."
    )


def resolve_local(source: Source, store: Store) -> Path | None:
    """Return the directory to load, if everything is on this machine; else None: pull it first.

    Reads directory entries and small files only, so it is quick and works offline.
    """
    if source.kind == "directory":
        return source.path
    if source.kind == "starter":
        return store.find(STARTER_ENTRY)
    if source.kind == "gguf":
        assert source.path is not None  # classify sets it
        return store.find_converted(source.path)
    return complete_snapshot(source.name)


def _directory(model: str, path: Path, code: CodePolicy) -> Source:
    if not (path / "config.json").is_file():
        raise ModelError(f"{path} is no model directory: it has no config.json.")
    inspect_directory(path, code=code)
    return Source("directory", model, path)


def _file(model: str, path: Path) -> Source:
    if path.suffix != ".gguf":
        raise ModelError(f"{path} is no model: of single files only .gguf can be served.")
    check_supported(path, read_header(path))
    return Source("gguf", model, path)
