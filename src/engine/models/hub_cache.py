"""The hub's cache on this machine, read without the hub's library: what is there, and is it whole.

Layout, per repository::

    models--org--name/refs/main            the commit that "main" was at the last download
    models--org--name/snapshots/<commit>/  links to blobs, by file name
    models--org--name/blobs/<hash>         the content, named by its own hash
    models--org--name/trees/<commit>.json  the files of the commit (newer versions write it)

A large file's blob is named by its SHA-256, a small one's by the SHA-1 that git
gives it. So every file can be checked offline, against its own name.

The server process uses this module: it imports neither mlx nor the hub's library.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ...resilience.errors import ModelError
from .weights import inspect_weights, read_json

__all__ = [
    "PATTERNS",
    "cache_directory",
    "complete_snapshot",
    "damaged_files",
    "forget",
    "remove_leftovers",
    "snapshot",
]

PATTERNS = (
    "*.json",
    "model*.safetensors",
    "*.py",
    "tokenizer.model",
    "*.tiktoken",
    "tiktoken.model",
    "*.txt",
    "*.jsonl",
    "*.jinja",
)
"""Of a repository's files, those that mlx-lm downloads."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")


def cache_directory() -> Path:
    """Return the hub's cache directory, by the environment variables that its library obeys."""
    environment = os.environ
    home = environment.get("HF_HOME") or os.path.join(  # noqa: PTH118 - may hold variables
        environment.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    place = (
        environment.get("HF_HUB_CACHE")
        or environment.get("HUGGINGFACE_HUB_CACHE")
        or os.path.join(home, "hub")  # noqa: PTH118 - as above
    )
    return Path(os.path.expandvars(place)).expanduser()


def snapshot(repository: str) -> Path | None:
    """Return the directory of the last downloaded commit, complete or not; None where none is."""
    folder = _folder(repository)
    try:
        commit = (folder / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    directory = folder / "snapshots" / commit
    return directory if commit and directory.is_dir() else None


def complete_snapshot(repository: str) -> Path | None:
    """Return the directory to load if nothing is missing in it; None where something is."""
    directory = snapshot(repository)
    if directory is None:
        return None
    listed = [name for name in _tree(directory) if _is_wanted(name)]
    if any(not (directory / name).is_file() for name in listed):
        return None
    try:
        inspect_weights(directory, read_json(directory / "config.json"))
    except ModelError:
        return None
    return directory if any(directory.glob("token*")) else None


def damaged_files(directory: Path) -> list[Path]:
    """Read all files of a snapshot and return those whose content is not what their hash says.

    A file without a hash (a copy, where links are not possible, of a commit
    whose listing is not there) cannot be checked and does not count.
    """
    tree = _tree(directory)
    damaged = []
    for path in sorted(directory.rglob("*")):
        if path.is_dir():
            continue
        name = path.relative_to(directory).as_posix()
        expected = _expected_hash(path, tree.get(name, {}))
        if not path.exists() or (expected and _hash_of(path, expected) != expected):
            damaged.append(path)
    return damaged


def forget(path: Path) -> None:
    """Delete a snapshot's file and its content, so that a download fetches it again."""
    blob = path.resolve()
    link = _link_target(path)
    for victim in (path, link, blob):
        if victim is not None:
            victim.unlink(missing_ok=True)


def remove_leftovers(repository: str) -> None:
    """Delete the partial files of downloads whose process is gone.

    The hub's library locks a file while it downloads, and begins a new partial
    file each time: one whose lock is free is of no use to anybody.
    """
    folder = _folder(repository)
    locks = folder.parent / ".locks" / folder.name
    for partial in (folder / "blobs").glob("*.incomplete"):
        lock = locks / f"{partial.name.split('.')[0]}.lock"
        try:
            with lock.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                partial.unlink(missing_ok=True)
        except OSError:
            continue  # in use, or without a lock: not ours to judge


def _folder(repository: str) -> Path:
    return cache_directory() / f"models--{repository.replace('/', '--')}"


def _tree(directory: Path) -> dict[str, dict[str, Any]]:
    """Return the listing of the snapshot's commit; empty where there is none."""
    path = directory.parent.parent / "trees" / f"{directory.name}.json"
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return files if isinstance(files, dict) else {}


def _is_wanted(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in PATTERNS)


def _link_target(path: Path) -> Path | None:
    """Return the blob that a snapshot's file links to, by its own name in ``blobs``."""
    if not path.is_symlink():
        return None
    return Path(os.path.normpath(path.parent / path.readlink()))


def _expected_hash(path: Path, listed: dict[str, Any]) -> str:
    """Return the hash that the file's content must have; empty where none is known."""
    link = _link_target(path)
    for candidate in (link.name if link else "", listed.get("lfs_sha256"), listed.get("blob_id")):
        if isinstance(candidate, str) and (
            _SHA256.fullmatch(candidate) or _SHA1.fullmatch(candidate)
        ):
            return candidate
    return ""


def _hash_of(path: Path, expected: str) -> str:
    """Return the content's hash, of the kind that is expected."""
    with path.open("rb") as file:
        if _SHA256.fullmatch(expected):
            return hashlib.file_digest(file, "sha256").hexdigest()
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        return digest.hexdigest()
