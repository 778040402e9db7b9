"""Bring a model onto this machine, whole and verified, so that it loads offline.

:func:`pull` does the work in this process, with mlx and the hub's library.
:func:`ensure_local` is for the server process, which must not import either: it
looks, and starts a process of its own only if something is to be done::

    python -m mlx_pharos.engine.models.pull CACHE_DIRECTORY MODEL [DESCRIPTOR]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...resilience.error_handler import ErrorHandler
from ...resilience.errors import ModelError
from ...resilience.failure_text import describe_failure
from ...resilience.retry import Retry
from .attempts import AttemptLog, read_reports
from .directory import inspect_directory
from .source import Source, classify, resolve_local
from .store import MANIFEST, Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...resilience.retry import RetryReport

__all__ = ["PullResult", "ensure_local", "pull"]


@dataclass(frozen=True, slots=True)
class PullResult:
    """A model that is on this machine."""

    directory: Path
    """What the engine loads."""
    bytes: int
    """The size of its files."""
    was_complete: bool
    """Whether it was here before: nothing was fetched or converted."""


def pull(
    source: Source, store: Store, *, report: Callable[[str], None], progress: bool = False
) -> PullResult:
    """Fetch what is missing, convert what needs it, and verify every byte that has a checksum.

    Can be repeated at any time, also by several processes at once: the second
    waits for the first and uses what it made.

    Args:
        source: From :func:`classify`.
        store: Where converted models are.
        report: Gets one line for each step, for a person.
        progress: Whether standard error is a terminal that may show progress bars.

    Raises:
        ModelError: What failed and what to do about it.
    """
    store.sweep()
    before = resolve_local(source, store)
    if before is not None:
        before = _verified(source, store, before, report)
    if before is not None and source.kind != "hub":
        return PullResult(before, _size(before), was_complete=True)
    directory = _fetch(source, store, report=report, progress=progress)
    if source.kind in ("starter", "gguf"):
        store.verify(directory)
    report(f"{source.name} is complete and verified: {_size(directory) / 1e6:.0f} MB.")
    return PullResult(directory, _size(directory), was_complete=before is not None)


def ensure_local(
    model: str,
    store: Store,
    *,
    report: Callable[[str], None],
    retried: Callable[[RetryReport], None] = lambda _: None,
) -> Path:
    """Return the directory to load, pulling the model in another process if it is not there.

    For ``pharos serve``: imports neither mlx nor the hub's library. What is on
    the machine already is not read again; ``pharos pull`` does that.

    Args:
        model: As the operator named it.
        store: Where converted models are.
        report: Gets one line for each step, for a person.
        retried: Told, when the pull is over, of each attempt that it made again.

    Raises:
        ModelError: The name is wrong, or the pull failed; it has said why on
            standard error.
    """
    source = classify(model)
    directory = resolve_local(source, store)
    if directory is not None:
        return directory
    report(
        f"{model} has to be converted once."
        if source.kind == "gguf"
        else f"{model} is not on this machine yet."
    )
    command = [sys.executable, "-P", "-m", __spec__.name, str(store.root), model]
    with tempfile.TemporaryFile() as attempts:
        finished = subprocess.run(  # noqa: S603 - ours
            [*command, str(attempts.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=(attempts.fileno(),),
            check=False,
        )
        attempts.seek(0)
        for each in read_reports(attempts.read()):
            retried(each)
    directory = resolve_local(source, store)
    if finished.returncode != 0 or directory is None:
        raise ModelError(f"{model} could not be pulled; the reason is above.")
    return directory


def _fetch(source: Source, store: Store, *, report: Callable[[str], None], progress: bool) -> Path:
    # Imported here: each of them may bring mlx, and a local directory needs none of them.
    if source.kind == "starter":
        from .starter import pull_starter  # noqa: PLC0415

        return pull_starter(store, report=report, progress=progress)
    if source.kind == "gguf":
        from .gguf import convert  # noqa: PLC0415

        assert source.path is not None  # classify sets it
        report(f"Converting {source.path.name}.")
        return convert(source.path, store)
    assert source.kind == "hub"  # a directory is always complete or refused
    from .hub import pull_hub  # noqa: PLC0415

    def wait() -> None:
        report(f"Another process is fetching {source.name}; waiting for it.")

    with store.lock(f"hub--{source.name.replace('/', '--').replace('.', '_')}", waiting=wait):
        return pull_hub(source.name, report=report, progress=progress, errors=store.errors)


def _verified(
    source: Source, store: Store, directory: Path, report: Callable[[str], None]
) -> Path | None:
    """Verify what is there; None if it was damaged and has been removed, to be made again."""
    if source.kind == "hub":
        return directory  # the hub's pull verifies, whether it fetched or not
    if not (directory / MANIFEST).is_file():
        inspect_directory(directory, code="run")
        report(f"{directory} is complete; a directory of your own has no checksums to compare.")
        return directory
    try:
        store.verify(directory)
    except ModelError as error:
        report(error.message)
        if source.kind == "directory":
            raise
        with store.lock(directory.name):
            store.remove(directory.name)
        report("Making it again.")
        return None
    report(f"{source.name} is complete and verified: {_size(directory) / 1e6:.0f} MB.")
    return directory


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _main(arguments: list[str]) -> int:
    """Pull in a process of its own; say why on standard error where it fails."""

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - this process talks to a person

    root, model, *descriptor = arguments
    attempts = AttemptLog(report, *map(int, descriptor))
    store = Store(Path(root), ErrorHandler(retry=Retry(listener=attempts)))
    try:
        pull(classify(model), store, report=report, progress=sys.stderr.isatty())
    except ModelError as error:
        report(error.message)
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - the process's border
        report(f"The pull failed, and nobody expected it to:\n{describe_failure(error)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
