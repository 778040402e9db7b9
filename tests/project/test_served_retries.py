"""``pharos serve`` of a model that has to be fetched first, from a hub that fails at first."""

from __future__ import annotations

import urllib.request
from typing import TYPE_CHECKING

from support.hub import hub_server
from support.served import serve_model

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_retries_before_serving_are_counted(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pull runs in another process before there is any telemetry; the scrape shows its retries."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with hub_server("org/tiny", tiny_model) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.failures = 1
        with (
            serve_model("org/tiny", "--cache-dir", str(tmp_path / "cache")) as served,
            urllib.request.urlopen(f"http://{served.address}/metrics", timeout=15) as answer,
        ):
            lines = answer.read().decode().splitlines()
    assert [
        'pharos_retries_total{operation="download",outcome="retried"} 1.0',
        'pharos_retries_total{operation="download",outcome="succeeded"} 1.0',
    ] == sorted(line for line in lines if line.startswith("pharos_retries_total{"))
