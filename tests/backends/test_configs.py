"""What deploy/ ships is checked by the programs that read it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from support.backend import DEPLOY, Jaeger, backend_program
from support.polling import fetch_json

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(120)
RULES = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))
RULE_TESTS = sorted((DEPLOY / "prometheus" / "tests").glob("*.yml"))


def _run(name: str, *arguments: str | Path, folder: Path, **variables: str) -> str:
    """Run a program to its end; it must end with 0."""
    done = subprocess.run(
        [backend_program(name), *arguments],
        cwd=folder,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("overlay", ["", "push.yaml", "sampling.yaml"])
def test_the_collectors_files(overlay: str, tmp_path: Path) -> None:
    """The collector takes its file, alone and with each that changes it."""
    files = [DEPLOY / "collector" / name for name in ("config.yaml", overlay) if name]
    arguments = [part for file in files for part in ("--config", file)]
    _run("otelcol-pharos", "validate", *arguments, folder=tmp_path, COLLECTOR_DATA=str(tmp_path))


def test_prometheus_file(tmp_path: Path) -> None:
    """Prometheus takes its file and the rules and targets that it names."""
    folder = shutil.copytree(DEPLOY / "prometheus", tmp_path / "prometheus")
    (folder / "pharos-metrics-key").write_text("k", encoding="utf-8")
    said = _run("promtool", "check", "config", "prometheus.yml", folder=folder)
    assert f"{len(RULES)} rule files found" in said


def test_rules_have_nothing_to_be_warned_of(tmp_path: Path) -> None:
    """No linter of promtool has anything to say of the rules."""
    assert RULES
    _run("promtool", "check", "rules", "--lint=all", "--lint-fatal", *RULES, folder=tmp_path)


@pytest.mark.parametrize("file", RULE_TESTS, ids=lambda file: str(file.stem))
def test_alerts_fire_when_they_should(file: Path) -> None:
    """Each alert fires when it should, and is silent when it should not."""
    said = _run("promtool", "test", "rules", file.name, folder=file.parent)
    assert "SUCCESS" in said


def test_alertmanagers_file(tmp_path: Path) -> None:
    """Alertmanager takes its file, and tells those who are there of a critical alert."""
    file = DEPLOY / "alertmanager" / "alertmanager.yml"
    _run("amtool", "check-config", file, folder=tmp_path)
    route = ["config", "routes", "test", f"--config.file={file}", "--verify.receivers=operators"]
    _run("amtool", *route, "severity=critical", folder=tmp_path)
    _run("amtool", *route, "severity=warning", folder=tmp_path)


def test_jaeger_starts_with_its_file(tmp_path: Path) -> None:
    """Jaeger starts with its file, answers, and keeps what it has on disk."""
    jaeger = Jaeger.prepare(tmp_path / "jaeger")
    with jaeger.program:
        assert fetch_json(f"{jaeger.url}/api/v3/services") == {"services": []}
    assert any((tmp_path / "jaeger" / "keys").iterdir())


@pytest.mark.parametrize("overlay", ["", "compose.cuda.yaml"])
def test_compose_files(overlay: str, tmp_path: Path) -> None:
    """Compose's own loader takes the file, alone and with the one for GPUs: schema, names, references."""
    files = [DEPLOY / name for name in ("compose.yaml", overlay) if name]
    said = _run("compose-config", "-format", "json", *files, folder=tmp_path)
    services = json.loads(said)["services"]
    behind = {"collector", "prometheus", "alertmanager", "jaeger", "victorialogs", "grafana"}
    assert behind <= services.keys()
    assert all(
        port["host_ip"] == "127.0.0.1"
        for service in services.values()
        for port in service.get("ports", ())
    )


@pytest.mark.parametrize("place", ["host", "server"])
def test_prometheus_file_in_compose(place: str, tmp_path: Path) -> None:
    """Prometheus takes its file with the targets that compose gives it."""
    folder = shutil.copytree(DEPLOY / "prometheus", tmp_path / "prometheus")
    shutil.copytree(DEPLOY / "compose" / "targets" / place, folder / "targets", dirs_exist_ok=True)
    shutil.copy(DEPLOY / "compose" / "no-key", folder / "pharos-metrics-key")
    _run("promtool", "check", "config", "prometheus.yml", folder=folder)


def test_the_servicemonitor() -> None:
    """The Prometheus operator's own definition has every field of it."""
    jsonschema = pytest.importorskip("jsonschema", reason="`make checkers` installs jsonschema")
    definition = yaml.safe_load(backend_program("servicemonitor.yaml").read_text(encoding="utf-8"))
    (schema,) = [
        version["schema"]["openAPIV3Schema"]
        for version in definition["spec"]["versions"]
        if version["name"] == "v1"
    ]
    _close(schema["properties"]["spec"])
    manifest = (DEPLOY / "kubernetes" / "servicemonitor.yaml").read_text(encoding="utf-8")
    jsonschema.validate(yaml.safe_load(manifest), schema)


def _close(schema: Any) -> None:
    """Let objects have no fields but those that are declared: the API server drops others silently."""
    if isinstance(schema, list):
        for each in schema:
            _close(each)
    elif isinstance(schema, dict):
        if "properties" in schema and schema.get("type") == "object":
            schema["additionalProperties"] = False
        for each in schema.values():
            _close(each)
