"""Whether models can be kept where they are to be."""

from __future__ import annotations

import shutil
import tempfile
from typing import TYPE_CHECKING

from .errors import ValidationError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["writable_bytes"]


def writable_bytes(directory: Path) -> int:
    """Return how many bytes are free where a directory is, or would be made.

    A file is made there and removed.

    Raises:
        ValidationError: Nothing can be written there.
    """
    try:
        existing = next(each for each in (directory, *directory.parents) if each.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
        return shutil.disk_usage(existing).free
    except OSError as error:
        text = f"{directory} cannot be written: {error.strerror}"
        mend = "choose another directory: --cache-dir DIR or PHAROS_CACHE_DIR"
        raise ValidationError("cache_dir", f"{text}; {mend}") from None
