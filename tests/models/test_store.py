"""The store publishes whole entries or none, whoever dies or races."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from mlx_pharos.engine.models.store import Store
from mlx_pharos.resilience.error_handler import ErrorHandler
from mlx_pharos.resilience.errors import ModelError
from mlx_pharos.resilience.retry import Retry

if TYPE_CHECKING:
    from pathlib import Path

    from mlx_pharos.resilience.retry import RetryReport


def _publish(store: Store, text: str) -> None:
    with store.lock("entry"), store.publishing("entry", {}) as directory:
        (directory / "weights").write_text(text)


def test_a_finished_entry_is_found_and_verified(tmp_path: Path) -> None:
    """What was published is found, passes verification, and can be replaced."""
    store = Store(tmp_path)
    assert store.find("entry") is None

    _publish(store, "first")
    _publish(store, "second")

    found = store.find("entry")
    assert found is not None
    assert "second" == (found / "weights").read_text()
    store.verify(found)
    assert [] == list((tmp_path / "partial").iterdir())


def test_a_failure_publishes_nothing(tmp_path: Path) -> None:
    """An exception while an entry is written leaves no entry and no partial files."""
    store = Store(tmp_path)

    def interrupted() -> None:
        with store.lock("entry"), store.publishing("entry", {}) as directory:
            (directory / "weights").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert store.find("entry") is None
    assert [] == list((tmp_path / "partial").iterdir())


def test_a_damaged_or_missing_file_is_named(tmp_path: Path) -> None:
    """Verification says which file is not what it was."""
    store = Store(tmp_path)
    _publish(store, "text")
    found = store.find("entry")
    assert found is not None

    (found / "weights").write_text("tXxt")
    with pytest.raises(ModelError, match=r"weights is damaged"):
        store.verify(found)
    (found / "weights").unlink()
    with pytest.raises(ModelError, match=r"weights is missing"):
        store.verify(found)


_DYING = """
import sys
from pathlib import Path
from mlx_pharos.engine.models.store import Store
store = Store(Path(sys.argv[1]))
with store.lock("entry"), store.publishing("entry", {}) as directory:
    (directory / "weights").write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_a_killed_writer_leaves_nothing_behind(tmp_path: Path) -> None:
    """While a writer lives its files stay; once it is killed they are swept, and others can write."""
    store = Store(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", _DYING, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as writer:
        assert writer.stdout is not None
        assert b"writing\n" == writer.stdout.readline()
        store.sweep()
        assert 1 == len(list((tmp_path / "partial").iterdir()))
        writer.kill()
        writer.wait()

    assert store.find("entry") is None
    store.sweep()
    assert [] == list((tmp_path / "partial").iterdir())
    _publish(store, "whole")
    assert store.find("entry") is not None


def test_a_second_writer_waits_and_is_told(tmp_path: Path) -> None:
    """Two at once do not write at once: the second says that it waits, then has its turn."""
    store = Store(tmp_path)
    waiting, order = threading.Event(), []

    def second() -> None:
        with store.lock("entry", waiting=waiting.set):
            order.append("second")

    thread = threading.Thread(target=second)
    with store.lock("entry"):
        thread.start()
        assert waiting.wait(10)
        order.append("first")
    thread.join(10)

    assert ["first", "second"] == order


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """A file where the cache directory should be is an error that names the setting."""
    (tmp_path / "cache").write_text("a file")
    store = Store(tmp_path / "cache")

    with pytest.raises(ModelError, match="PHAROS_CACHE_DIR"), store.lock("entry"):
        pass


def test_a_file_that_cannot_be_opened_for_a_moment_is_read_again(tmp_path: Path) -> None:
    """All descriptors are taken, really; at the first report one is freed, and the model is whole."""
    store = Store(tmp_path)
    with store.lock("entry"), store.publishing("entry", {}) as directory:
        (directory / "weights").write_bytes(b"x" * 1000)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    told: list[RetryReport] = []

    def free_one(report: RetryReport) -> None:
        told.append(report)
        if taken:
            os.close(taken.pop())

    busy = Store(tmp_path, ErrorHandler(retry=Retry(listener=free_one)))
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        busy.verify(busy.path("entry"))
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert ["retried", "succeeded"] == [report.outcome for report in told]
    assert {("file access", "OSError"), ("file access", "")} == {
        (report.operation, report.cause) for report in told
    }
