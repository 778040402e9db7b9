"""Faults of what a model comes from and goes to: the hub fails, the cache cannot be written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.gguf_writer import write_tiny_gguf
from support.hub import HubServer, hub_server
from support.permissions import obey_permissions
from support.planted import ended, planted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.examination import Examination
    from support.patient import Patient

_NARROW = ("--max-batch", "4", "--max-queue", "28")
_MODEL = "org/tiny"

pytestmark = pytest.mark.battery


@pytest.fixture
def hub(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub on loopback that has the tiny model; no proxy stands before it."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with hub_server(_MODEL, tiny_model) as server:
        yield server


def test_the_hub_fails_at_first(hub: HubServer, examine: Callable[[Patient], Examination]) -> None:
    """The fourth attempt brings the model, and it is served as any other."""
    hub.failures = 3
    with planted(_MODEL, *_NARROW, hub=hub.server_port) as server:
        assert 0 == hub.failures
        examination = examine(server)
        asks = examination.draw(10)
        with examination.load(asks) as load:
            pass
        examination.judge(load)
        outcomes = {
            outcome: server.total("pharos_retries_total", operation="download", outcome=outcome)
            for outcome in ("retried", "succeeded", "given_up")
        }
        assert {"retried": 3, "succeeded": 1, "given_up": 0} == outcomes


@pytest.mark.parametrize("command", ["serve", "pull"])
def test_the_hub_fails_always(hub: HubServer, tmp_path: Path, command: str) -> None:
    """After three retries the command ends with code 1, and says what to do."""
    hub.failures = 1_000_000
    flags = {"serve": ("--port", "0", "--model", _MODEL), "pull": (_MODEL,)}[command]
    code, said = ended(command, *flags, folder=tmp_path, hub=hub.server_port)
    assert 1 == code, said
    assert 3 == said.count("trying again in"), said
    assert "Check the network, then try again." in said
    assert "Traceback" not in said


@pytest.mark.parametrize("place", ["below a file", "of others"])
def test_the_cache_cannot_be_written(
    tiny_model: Path,
    examine: Callable[[Patient], Examination],
    tmp_path: Path,
    place: str,
) -> None:
    """Whoever has a model to convert is told so; a model that is here is served as ever."""
    if place == "below a file":
        (tmp_path / "file").touch()
        cache = tmp_path / "file" / "cache"
    else:
        cache = tmp_path / "cache"
        cache.mkdir(mode=0o555)
    write_tiny_gguf(tmp_path / "tiny.gguf")
    variables = {"PHAROS_CACHE_DIR": str(cache)}
    code, said = ended(
        "serve",
        *("--port", "0", "--model", str(tmp_path / "tiny.gguf")),
        folder=tmp_path,
        variables=variables,
        prepare=obey_permissions,
    )
    assert 2 == code, said
    assert f"cache_dir  {cache} cannot be written: " in said
    assert "choose another directory: --cache-dir DIR or PHAROS_CACHE_DIR" in said
    assert "Traceback" not in said
    with planted(tiny_model, *_NARROW, variables=variables, prepare=obey_permissions) as server:
        examination = examine(server)
        asks = examination.draw(10)
        with examination.load(asks) as load:
            pass
        examination.judge(load)
