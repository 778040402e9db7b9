"""The cache directory of converted models: published whole or not at all.

Layout::

    <root>/models/<entry>/          a model directory, with a manifest
    <root>/partial/<entry>.<random>/    being written; worthless once its writer is gone
    <root>/downloads/               finished downloads that wait for their conversion
    <root>/locks/<entry>            one lock per entry; the files stay

An entry's name has no dots. It is written under ``partial`` while its lock is held, and renamed into
``models`` when it is complete and on the disk. Locks are ``flock``: they belong
to the open file, work between processes and threads, and the kernel drops them
when their holder dies. So whoever holds an entry's lock knows that anything
partial of that entry is left over from a dead writer.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ...resilience.error_handler import ErrorHandler
from ...resilience.errors import ModelError
from ...resilience.retry import transient_file_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["MANIFEST", "Store", "sha256_of"]

MANIFEST = "pharos-manifest.json"
"""In each entry: where it came from, and size and SHA-256 of each of its files."""

_MANIFEST_VERSION = 1
_LOCK_SECONDS = 0.1
"""Between two attempts at a lock that another holds."""
_Result = TypeVar("_Result")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Store:
    """The models that Pharos made, in one directory. Safe from any thread and process."""

    root: Path
    errors: ErrorHandler = field(default_factory=ErrorHandler, repr=False, compare=False)
    """Tries again what may pass: a file of a disk that is away for a moment, a download."""

    @property
    def downloads(self) -> Path:
        """Where finished downloads lie until they are converted."""
        return self.root / "downloads"

    def path(self, entry: str) -> Path:
        """Return where the entry is, or would be."""
        return self.root / "models" / entry

    def find(self, entry: str) -> Path | None:
        """Return the entry's directory if it was published."""
        path = self.path(entry)
        with faults_of_disk(self.root):
            found = self._access((path / MANIFEST).is_file)
        return path if found else None

    def find_converted(self, original: Path) -> Path | None:
        """Return the conversion of a file that has not changed since: same path, size and time."""
        wanted = origin_of(original)
        for manifest in sorted((self.root / "models").glob(f"*/{MANIFEST}")):
            content = self._access(partial(_read_manifest, manifest.parent))
            origin = content.get("origin", {})
            if all(origin.get(key) == value for key, value in wanted.items()):
                return manifest.parent
        return None

    @contextmanager
    def lock(self, entry: str, *, waiting: Callable[[], object] | None = None) -> Iterator[None]:
        """Hold the entry's lock, and throw away what a dead holder left half-done.

        Args:
            entry: The entry to be written.
            waiting: Called once if another process or thread holds the lock,
                before this one waits for it.
        """
        with faults_of_disk(self.root):
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.root / "locks" / entry, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _try_lock(descriptor):
                if waiting is not None:
                    waiting()
                # Not one call that blocks: a Ctrl-C that comes just before it would be heard after.
                while not _try_lock(descriptor):
                    time.sleep(_LOCK_SECONDS)
            for leftover in self._partials(entry):
                shutil.rmtree(leftover, ignore_errors=True)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def scratch(self, entry: str) -> Iterator[Path]:
        """Give a directory on the store's disk that is gone afterwards. Needs the entry's lock."""
        with faults_of_disk(self.root):
            (self.root / "partial").mkdir(parents=True, exist_ok=True)
            directory = Path(tempfile.mkdtemp(prefix=f"{entry}.", dir=self.root / "partial"))
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    @contextmanager
    def publishing(self, entry: str, origin: dict[str, Any]) -> Iterator[Path]:
        """Give a directory to write the entry to; publish it unless the block raises.

        The lock of the entry must be held. An entry that exists is replaced.

        Args:
            entry: Its name in the store.
            origin: What it is made from; kept in the manifest.
        """
        with self.scratch(entry) as directory:
            with faults_of_disk(self.root):
                yield directory
                _write_manifest(directory, origin)
                target = self.path(entry)
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.exists():
                    target.rename(directory.with_name(f"{directory.name}.replaced"))
                directory.rename(target)
                _sync(target.parent)
            for replaced in (self.root / "partial").glob(f"{entry}.*.replaced"):
                shutil.rmtree(replaced, ignore_errors=True)

    def sweep(self) -> None:
        """Throw away what dead pulls left behind, of any entry."""
        with faults_of_disk(self.root):
            leftovers = list((self.root / "partial").glob("*"))
        for leftover in leftovers:
            entry = leftover.name.partition(".")[0]
            lock = self.root / "locks" / entry
            if not lock.exists():
                continue
            with lock.open("r+b") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue  # its writer lives
                shutil.rmtree(leftover, ignore_errors=True)

    def verify(self, directory: Path) -> None:
        """Read all files of an entry and compare them with its manifest.

        Raises:
            ModelError: A file is missing or damaged; the message names it.
            NetworkError: A file could not be read, each time that it was tried.
        """
        files = self._access(partial(_read_manifest, directory)).get("files")
        if not isinstance(files, dict):
            raise ModelError(f"{directory / MANIFEST} is damaged. Delete {directory}, then pull.")
        for name, expected in files.items():
            path = directory / name
            if not path.is_file():
                raise ModelError(f"{path} is missing. Delete {directory}, then pull the model.")
            size, digest = self._access(partial(_size_and_sha256, path))
            if size != expected["bytes"] or digest != expected["sha256"]:
                raise ModelError(
                    f"{path} is damaged: its SHA-256 is not the one it was written with. "
                    f"Delete {directory}, then pull the model."
                )

    def remove(self, entry: str) -> None:
        """Delete an entry. Its lock must be held."""
        path = self.path(entry)
        if path.exists():
            # The manifest first: from then on the entry counts as not published.
            (path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)

    def _access(self, call: Callable[[], _Result]) -> _Result:
        """Read what is on the disk, again where that may help."""
        return self.errors.retry_with_backoff(
            call, operation="file access", on=transient_file_error
        )

    def _partials(self, entry: str) -> list[Path]:
        return list((self.root / "partial").glob(f"{entry}.*"))


def origin_of(path: Path) -> dict[str, Any]:
    """Return what tells a file from a later version of it, without reading it."""
    status = path.stat()
    return {"path": str(path), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


@contextmanager
def faults_of_disk(root: Path) -> Iterator[None]:
    """Turn the disk's errors into one that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ModelError(
                f"The disk of {root} is full: make room, or choose another place with "
                "PHAROS_CACHE_DIR."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise ModelError(
                f"{root} cannot be written: choose another place with PHAROS_CACHE_DIR."
            ) from error
        if _is_about(error, root):
            raise ModelError(
                f"{root} cannot be used: {error.strerror}. Choose another place with "
                "PHAROS_CACHE_DIR."
            ) from error
        raise


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_about(error: OSError, root: Path) -> bool:
    """Whether the fault is of the root, of something in it, or of a directory above it."""
    if not isinstance(error.filename, str):
        return False
    path = Path(error.filename)
    return path.is_relative_to(root) or root.is_relative_to(path)


def _write_manifest(directory: Path, origin: dict[str, Any]) -> None:
    files = {}
    for path in sorted(directory.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    content = {"version": _MANIFEST_VERSION, "origin": origin, "files": files}
    manifest = directory / MANIFEST
    manifest.write_text(json.dumps(content, indent=1), encoding="utf-8")
    with manifest.open("rb") as file:
        os.fsync(file.fileno())
    _sync(directory)


def _read_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest; an empty object where there is none that can be read."""
    try:
        content = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except OSError as error:
        if transient_file_error(error):
            raise
        return {}
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _size_and_sha256(path: Path) -> tuple[int, str]:
    return path.stat().st_size, sha256_of(path)


def _sync(directory: Path) -> None:
    """Write a directory's entries to the disk, so that a rename survives a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
