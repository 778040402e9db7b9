"""Models from the hub: found offline, fetched, resumed, verified; all against a stand-in."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS

from mlx_pharos.engine.models import hub_cache
from mlx_pharos.engine.models.pull import ensure_local, pull
from mlx_pharos.engine.models.source import classify, resolve_local
from mlx_pharos.engine.models.store import Store
from mlx_pharos.resilience.errors import ModelError, NetworkError
from support.hub import COMMIT, HubServer, blob_name, hub_server, write_hub_cache
from support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlx_pharos.resilience.retry import RetryReport

REPOSITORY = "org/tiny"
WEIGHTS = "model.safetensors"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, which this process and its children use."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path / "hub"


@pytest.fixture
def hub(cache: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub on loopback that has the tiny model."""
    with hub_server(REPOSITORY, tiny_model) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.lower(), raising=False)
        yield server


def _start_pull(tmp_path: Path, name: str = REPOSITORY) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "mlx_pharos.engine.models.pull"]
    return subprocess.Popen(
        [*command, str(tmp_path / "store"), name],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=os.environ,
    )


def _pull(tmp_path: Path, name: str = REPOSITORY) -> tuple[int, str]:
    with _start_pull(tmp_path, name) as process:
        _, said = process.communicate(timeout=18)
    return process.returncode, said


def _local(tmp_path: Path) -> Path | None:
    return resolve_local(classify(REPOSITORY), Store(tmp_path / "store"))


def test_a_cached_model_is_found_offline(cache: Path, tmp_path: Path, tiny_model: Path) -> None:
    """What the hub's library cached is local, and a pull verifies it without a network."""
    assert _local(tmp_path) is None
    snapshot = write_hub_cache(cache, REPOSITORY, tiny_model)

    assert snapshot == _local(tmp_path)
    code, said = _pull(tmp_path)

    assert 0 == code, said
    assert "complete and verified" in said


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_an_incomplete_model_is_not_local(
    cache: Path, tmp_path: Path, tiny_model: Path, missing: str
) -> None:
    """A snapshot that lacks a file must be pulled, and offline the pull says why it cannot."""
    snapshot = write_hub_cache(cache, REPOSITORY, tiny_model)
    (snapshot / missing).unlink()
    if missing == "tokenizer.json":
        (snapshot / "tokenizer_config.json").unlink()

    assert _local(tmp_path) is None


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json"])
def test_a_damaged_file_is_named_offline(
    cache: Path, tmp_path: Path, tiny_model: Path, name: str
) -> None:
    """A changed byte in a large or a small file is found by its hash, without a network."""
    snapshot = write_hub_cache(cache, REPOSITORY, tiny_model)
    assert [] == hub_cache.damaged_files(snapshot)
    blob = (snapshot / name).resolve()
    content = bytearray(blob.read_bytes())
    content[-5] ^= 1
    blob.write_bytes(content)

    assert [snapshot / name] == hub_cache.damaged_files(snapshot)
    code, said = _pull(tmp_path)

    assert 1 == code
    assert f"{name} of {REPOSITORY} is damaged" in said
    assert "Traceback" not in said


def test_a_model_is_fetched_and_a_damaged_file_fetched_again(
    hub: HubServer, tmp_path: Path
) -> None:
    """A pull fetches all files; after damage it names the file and fetches that one alone."""
    code, said = _pull(tmp_path)
    assert 0 == code, said
    directory = _local(tmp_path)
    assert directory is not None
    assert COMMIT == directory.name
    assert set(hub.files) == {name for name, _ in hub.downloads}

    (directory / WEIGHTS).resolve().write_bytes(b"x" * len(hub.files[WEIGHTS]))
    hub.downloads.clear()
    code, said = _pull(tmp_path)

    assert 0 == code, said
    assert f"Damaged, its hash is wrong: {WEIGHTS}" in said
    assert [(WEIGHTS, 0)] == hub.downloads
    assert hub.files[WEIGHTS] == (directory / WEIGHTS).read_bytes()


def test_a_hub_that_fails_twice_is_asked_again(hub: HubServer, tmp_path: Path) -> None:
    """The third attempt brings the model; each wait is told, in words of ours."""
    hub.failures = 2

    code, said = _pull(tmp_path)

    assert 0 == code, said
    assert 2 == said.count("The download failed with LocalEntryNotFoundError; trying again in 0.")
    assert _local(tmp_path) is not None


def test_a_hub_that_stays_away_is_said_after_four_attempts(hub: HubServer, tmp_path: Path) -> None:
    """Three retries, then one sentence; what was tried is told to the process that waits."""
    hub.failures = 1000
    store = Store(tmp_path / "store")
    said: list[str] = []
    retries: list[RetryReport] = []

    with pytest.raises(ModelError, match="could not be pulled"):
        ensure_local(REPOSITORY, store, report=said.append, retried=retries.append)

    assert ["retried", "retried", "retried", "given_up"] == [each.outcome for each in retries]
    assert {"download"} == {each.operation for each in retries}
    with pytest.raises(NetworkError, match="the hub cannot be reached") as raised:
        pull(classify(REPOSITORY), store, report=said.append)
    assert "LocalEntryNotFoundError" == type(raised.value.__cause__).__name__


def test_a_cut_connection_is_resumed(hub: HubServer, tmp_path: Path) -> None:
    """A download that is cut goes on where it was: the hub's library keeps blocks of 10 MiB."""
    hub.files["large.txt"] = bytes(range(256)) * 48_000
    hub.cut_at["large.txt"] = 11_000_000

    code, said = _pull(tmp_path)

    assert 0 == code, said
    starts = [start for name, start in hub.downloads if name == "large.txt"]
    assert [0, 10 << 20] == starts
    directory = _local(tmp_path)
    assert directory is not None
    assert hub.files["large.txt"] == (directory / "large.txt").read_bytes()


def test_a_killed_pull_goes_on_with_what_is_missing(
    hub: HubServer, cache: Path, tmp_path: Path
) -> None:
    """After a kill in the middle nothing half-done is used, finished files stay, leftovers go."""
    hub.stop_at[WEIGHTS] = 100_000
    with _start_pull(tmp_path) as process:
        assert hub.standing_still.wait(15)
        process.kill()
        process.communicate()
    assert _local(tmp_path) is None
    blobs = cache / "models--org--tiny" / "blobs"
    assert list(blobs.glob("*.incomplete"))
    finished = {path.name for path in blobs.iterdir() if not path.name.endswith(".incomplete")}
    hub.stop_at.clear()
    hub.released.set()
    hub.downloads.clear()

    code, said = _pull(tmp_path)

    assert 0 == code, said
    assert _local(tmp_path) is not None
    assert [] == list(blobs.glob("*.incomplete"))
    fetched = {blob_name(name, hub.files[name]) for name, _ in hub.downloads}
    assert not finished & fetched
    assert blob_name(WEIGHTS, hub.files[WEIGHTS]) in fetched


def test_two_pulls_at_once_fetch_once(hub: HubServer, tmp_path: Path) -> None:
    """Two processes pull one model: both succeed, and each file is downloaded once."""
    with _start_pull(tmp_path) as first, _start_pull(tmp_path) as second:
        said = [process.communicate(timeout=18)[1] for process in (first, second)]

    assert [0, 0] == [first.returncode, second.returncode], said
    assert len(hub.files) == len(hub.downloads)


def test_a_repository_that_does_not_exist_is_said(hub: HubServer, tmp_path: Path) -> None:
    """An unknown repository is a sentence, not a traceback."""
    code, said = _pull(tmp_path, "org/other")

    assert 1 == code
    assert "The hub has no repository org/other" in said
    assert "Traceback" not in said


def test_no_network_is_said(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub that cannot be reached is a sentence that tells what to do."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, said = _pull(tmp_path)

    assert 1 == code
    assert "HF_HUB_OFFLINE is set" in said
    assert "Traceback" not in said


def test_a_repository_without_a_model_is_said(hub: HubServer, tmp_path: Path) -> None:
    """A repository that holds no MLX weights is refused after its small files are there."""
    del hub.files[WEIGHTS]

    code, said = _pull(tmp_path)

    assert 1 == code
    assert "holds no model that mlx-lm loads" in said


def test_patterns_are_those_of_mlx_lm() -> None:
    """What counts as complete is what mlx-lm downloads."""
    assert tuple(DEFAULT_ALLOW_PATTERNS) == hub_cache.PATTERNS


def test_cache_directory_is_the_librarys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment moves the cache as it moves the hub library's own."""
    code = "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (
        ("HOME", str(tmp_path)),
        ("XDG_CACHE_HOME", str(tmp_path / "xdg")),
        ("HF_HOME", "$HOME/hf"),
        ("HUGGINGFACE_HUB_CACHE", str(tmp_path / "old")),
        ("HF_HUB_CACHE", "~/new"),
    ):
        monkeypatch.setenv(name, value)
        found = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
        )
        expected = os.path.expanduser(found.stdout.strip())  # noqa: PTH111 - as the library does
        assert expected == str(hub_cache.cache_directory())


def test_a_repository_with_shards_is_complete_with_all_of_them(cache: Path, tmp_path: Path) -> None:
    """The index names the shards; one of them missing makes the model incomplete."""
    source = write_tiny_model(tmp_path / "source")
    (source / WEIGHTS).rename(source / "model-00001-of-00002.safetensors")
    shard = (source / "model-00001-of-00002.safetensors").read_bytes()
    (source / "model-00002-of-00002.safetensors").write_bytes(shard)
    (source / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00001-of-00002.safetensors",'
        ' "b": "model-00002-of-00002.safetensors"}}'
    )
    snapshot = write_hub_cache(cache, REPOSITORY, source)

    assert snapshot == _local(tmp_path)
    (snapshot / "model-00002-of-00002.safetensors").unlink()
    assert _local(tmp_path) is None
