"""The file of API keys: a name and a hash on each line, never a key.

A key is 256 random bits, so nobody guesses it, and one round of SHA-256 keeps it as secret as a
slow hash would: there is no dictionary to try. What the file must withstand is other users of the
machine, who could add a hash of their own; so it is refused where they may write it or read it.

    laptop sha256:5e88489…

Whoever changes the file writes a new one beside it and puts it in place, under a lock on the
folder: a server that starts meanwhile reads the old list or the new one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..resilience.api_keys import ApiKey
from ..sources import ConfigurationError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["KeyFile", "KeyFileError"]

_PREFIX = "pk-"
"""Tells scanners, and whoever finds it in a log, what it is."""
_RANDOM_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LINE = re.compile(r"(\S+)\s+sha256:([0-9a-f]{64})")
_MOST_BYTES = 1 << 20
_HEADING = (
    "# Keys of Pharos: name, hash. Written by `pharos keys`; the keys themselves are nowhere.\n"
)


class KeyFileError(ConfigurationError):
    """The file of keys cannot be used."""

    def __init__(self, path: Path, text: str) -> None:
        super().__init__([Problem(subject=str(path), text=text)])


class KeyFile:
    """The keys in one file. Reads and writes it anew each time; holds no state."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> tuple[ApiKey, ...]:
        """Return the keys, in the order of the file.

        Raises:
            KeyFileError: It is missing, others may read or write it, a line of it is not one, or
                a name or a key comes twice.
        """
        return self._parsed(self._text())

    def add(self, name: str) -> str:
        """Make a key, keep its hash, and return the key: this is the only time that it is known.

        Raises:
            KeyFileError: The name is taken or cannot be one, or the file cannot be written.
        """
        if not _NAME.fullmatch(name):
            text = f"{name!r} should be 1 to 64 letters, digits, dots, dashes or underscores"
            raise KeyFileError(self._path, text)
        key = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
        with self._changing() as kept:
            if any(each.name == name for each in kept):
                raise KeyFileError(self._path, f"has a key of the name {name} already; remove it")
            kept.append(ApiKey.of(name, key))
        return key

    def remove(self, name: str) -> None:
        """Forget the key of this name; servers that start later refuse it.

        Raises:
            KeyFileError: There is none, or the file cannot be written.
        """
        with self._changing() as kept:
            left = [each for each in kept if each.name != name]
            if len(left) == len(kept):
                raise KeyFileError(self._path, f"has no key of the name {name}")
            kept[:] = left

    @contextmanager
    def _changing(self) -> Iterator[list[ApiKey]]:
        """Give the keys to change, alone among all processes, and write what has become of them."""
        try:
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            text = f"cannot be made: its folder cannot be opened ({error.strerror})"
            raise KeyFileError(self._path, text) from None
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            kept = [*self.read()] if self._path.exists() else []
            yield kept
            self._write(kept)
            os.fsync(folder)
        except OSError as error:
            raise KeyFileError(self._path, f"cannot be written: {error.strerror}") from None
        finally:
            os.close(folder)

    def _write(self, keys: Iterable[ApiKey]) -> None:
        lines = [f"{each.name} sha256:{each.digest.hex()}\n" for each in keys]
        # mkstemp makes a file that its owner alone may read, whatever the umask is.
        number, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        try:
            with os.fdopen(number, "w", encoding="ascii") as file:
                file.writelines([_HEADING, *lines])
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self._path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _text(self) -> str:
        try:
            number = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            text = f"cannot be read: {error.strerror}; "
            missing = error.errno == errno.ENOENT
            text += "make it: pharos keys add NAME" if missing else "let the server's user read it"
            raise KeyFileError(self._path, text) from None
        try:
            self._check_rights(os.fstat(number))
            content = os.read(number, _MOST_BYTES)
        finally:
            os.close(number)
        if len(content) == _MOST_BYTES:
            raise KeyFileError(self._path, "is larger than any list of keys")
        try:
            return content.decode("ascii")
        except UnicodeDecodeError:
            raise KeyFileError(self._path, "is not a list of keys: it is no text") from None

    def _check_rights(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError(self._path, "is not a file")
        mend = f"chmod 600 {self._path}"
        if status.st_uid not in {0, os.geteuid()}:
            text = f"belongs to another user ({status.st_uid}), who could add keys; chown it"
            raise KeyFileError(self._path, text)
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise KeyFileError(self._path, f"can be written by other users; {mend}")
        if status.st_mode & stat.S_IROTH:
            raise KeyFileError(self._path, f"can be read by every user; {mend}")

    def _parsed(self, text: str) -> tuple[ApiKey, ...]:
        keys: list[ApiKey] = []
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            found = _LINE.fullmatch(line.strip())
            if found is None or not _NAME.fullmatch(found[1]):
                # The line is not shown: somebody may have written a key into it.
                text = f"line {number} is not 'NAME sha256:HASH'; pharos keys add makes one"
                raise KeyFileError(self._path, text)
            keys.append(ApiKey(found[1], bytes.fromhex(found[2])))
        for what in ("name", "digest"):
            values = [getattr(each, what) for each in keys]
            if len(set(values)) < len(values):
                word = "name" if what == "name" else "key"
                raise KeyFileError(self._path, f"has the same {word} twice; remove one of them")
        return tuple(keys)
