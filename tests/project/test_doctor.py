"""The doctor and the start of a server come to the same verdict, by the same checks."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from mlx_pharos.config import ConfigurationError, ConfigValidator, Settings, configure
from mlx_pharos.doctor.checks import check_telemetry
from mlx_pharos.doctor.report import print_report
from mlx_pharos.engine.models.gguf import convert
from mlx_pharos.engine.models.store import Store
from support.gguf_writer import write_tiny_gguf
from support.permissions import obey_permissions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@pytest.fixture
def unwritable(tmp_path: Path) -> Path:
    """A directory that cannot be made, whoever runs the tests: it is below a file."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "cache"


def _failing(arguments: Sequence[str]) -> list[str]:
    """Return what the doctor says of all that would keep a server from serving."""
    output = io.StringIO()
    can_serve = print_report(arguments, as_json=True, output=output)
    findings = json.loads(output.getvalue())["findings"]
    failing = [each for each in findings if each["status"] == "error"]
    assert can_serve == (not failing)
    assert all(each["mend"] for each in failing)
    return [f"{each['name']}: {each['text']}" for each in failing]


def test_doctor_and_serve_agree(
    tmp_path: Path, unwritable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Telemetry that cannot be sent and a cache that cannot be written are found by both, at once."""
    write_tiny_gguf(tmp_path / "m.gguf")
    flags = ["--port", "0", "--model", str(tmp_path / "m.gguf"), "--cache-dir", str(unwritable)]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "foo")
    with pytest.raises(ConfigurationError) as caught:
        configure(flags)
    said = {each.subject: each.text for each in caught.value.problems}
    assert {"cache_dir", "OTEL_EXPORTER_OTLP_PROTOCOL"} == set(said)
    assert said["cache_dir"].startswith(f"{unwritable} cannot be written: ")
    cache, telemetry = _failing(flags)
    assert cache.startswith(f"Cache: {unwritable} cannot be written: ")
    assert telemetry.startswith("Telemetry: OTEL_EXPORTER_OTLP_PROTOCOL should be ")


def test_doctor_says_where_telemetry_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each signal that is sent, without what may be secret in a URL."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://me:pass@c.example/v1/x?key=y")
    settings = Settings(otlp_endpoint="")
    (finding,) = check_telemetry(settings, ConfigValidator(settings))
    assert ("ok", "by OTLP: traces to https://c.example") == (finding.status, finding.text)
    settings = Settings(otlp_endpoint="http://127.0.0.1:4318")
    (finding,) = check_telemetry(settings, ConfigValidator(settings))
    where = "http://127.0.0.1:4318"
    assert f"by OTLP: traces to {where}, metrics to {where}" == finding.text


def test_a_model_that_is_here_needs_no_cache(tiny_model: Path, unwritable: Path) -> None:
    """Nothing is said of a cache that nothing has to be written to, nor where no model is known."""

    def free(model: str) -> int | None:
        settings = Settings(model=model, cache_dir=unwritable, port=0)
        return ConfigValidator(settings).validate_cache_dir()

    assert free(str(tiny_model)) is None
    assert free("none") is None
    with pytest.raises(ConfigurationError, match="cannot be written"):
        free("starter")


@pytest.mark.skipif(sys.platform != "linux", reason="root obeys permissions on Linux alone")
def test_a_complete_model_is_served_from_a_cache_that_is_read_only(tmp_path: Path) -> None:
    """A file that was converted before needs no place; one that was not is refused at the start."""
    cache = tmp_path / "cache"
    for name in ("here.gguf", "other.gguf"):
        write_tiny_gguf(tmp_path / name)
    convert(tmp_path / "here.gguf", Store(cache))
    cache.chmod(0o555)

    def start(name: str) -> subprocess.CompletedProcess[str]:
        flags = ["--port", "0", "--model", str(tmp_path / name), "--cache-dir", str(cache)]
        code = f"from mlx_pharos.config import configure; configure({flags!r})"
        return subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=18,
            check=False,
            preexec_fn=obey_permissions,
        )

    assert "" == start("here.gguf").stderr
    assert f"{cache} cannot be written: Permission denied" in start("other.gguf").stderr
