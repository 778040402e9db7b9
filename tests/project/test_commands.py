"""The commands, run as a person runs them: in a process of their own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING

import pytest

import mlx_pharos
from mlx_pharos.settings import Settings
from mlx_pharos.sources import SECRETS, flag_of
from support.served import serve_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def _pharos(
    *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mlx_pharos", *arguments],
        capture_output=True,
        text=True,
        timeout=18,
        check=False,
        env={**os.environ, "NO_COLOR": "1", **(environment or {})},
    )


def _imported(*arguments: str) -> set[str]:
    """Return the modules that a command imports."""
    command = [sys.executable, "-X", "importtime", "-m", "mlx_pharos", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=18, check=False)
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def test_the_version_is_the_packages() -> None:
    """The version is printed alone, for programs."""
    done = _pharos("--version")
    assert (done.stdout, done.returncode) == (f"pharos {mlx_pharos.__version__}\n", 0)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"]])
def test_the_version_and_the_help_load_nothing(arguments: Sequence[str]) -> None:
    """A person who asks for the version or the help does not wait for libraries."""
    assert not _imported(*arguments) & {"pydantic", "flask", "msgspec", "structlog", "mlx.core"}


def test_the_help_of_serve_has_every_setting() -> None:
    """Every setting that has a flag is in the help of serve, with its default."""
    text = _pharos("serve", "--help").stdout
    for name in Settings.model_fields:
        assert (flag_of(name) in text) == (name not in SECRETS), name
    assert "[8080]" in text
    assert "PHAROS_API_KEY" in text


def test_without_a_command_the_summary_is_shown() -> None:
    """A person who types the name alone learns what there is; the exit code is that of misuse."""
    done = _pharos()
    assert done.returncode == 2
    assert "pharos serve" in done.stdout


@pytest.mark.parametrize("command", ["pull", "doctor"])
def test_every_command_has_a_help(command: str) -> None:
    """Each command says what it does."""
    done = _pharos(command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: pharos {command}")


def test_an_unknown_command_is_named() -> None:
    """A command that does not exist ends with 2 and the list of those that do."""
    done = _pharos("server")
    assert done.returncode == 2
    assert "no command 'server'" in done.stderr
    assert "pharos serve" in done.stderr


def test_wrong_settings_end_with_2_before_anything_starts(tmp_path: Path) -> None:
    """All errors are in one report, nothing was bound, and no traceback is shown."""
    done = _pharos(
        "serve", "--port", "x", "--model", str(tmp_path), environment={"PHAROS_MAX_BACTH": "1"}
    )
    assert done.returncode == 2
    for expected in ("--port", "PHAROS_MAX_BACTH", "did you mean PHAROS_MAX_BATCH", str(tmp_path)):
        assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert "listens" not in done.stderr


def test_serve_serves_and_ends_with_0(tiny_model: Path) -> None:
    """Serve listens where it says, answers with the model, and ends with 0 on SIGTERM."""
    with serve_model(tiny_model, "--served-model-name", "tiny") as served:
        url = f"http://{served.address}/v1/models"
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert json.load(answer)["data"][0]["id"] == "tiny"


def test_pull_of_a_directory_says_where_it_is(tiny_model: Path) -> None:
    """Pulling a model that is there already checks it, and prints its directory."""
    done = _pharos("pull", str(tiny_model))
    assert (done.stdout, done.returncode) == (f"{tiny_model.resolve()}\n", 0)


def test_pull_of_nothing_fails_in_one_line(tmp_path: Path) -> None:
    """A path without a model ends with 1 and a sentence."""
    done = _pharos("pull", str(tmp_path / "none"))
    assert done.returncode == 1
    assert str(tmp_path / "none") in done.stderr
    assert "Traceback" not in done.stderr


def test_the_doctor_finds_nothing_wrong(tiny_model: Path) -> None:
    """With a model and a free port, serving would work, and BLAS is measured."""
    done = _pharos("doctor", "--json", "--model", str(tiny_model), "--port", "0")
    report = json.loads(done.stdout)
    findings = {each["name"]: each for each in report["findings"]}
    assert done.returncode == 0, done.stdout
    assert report["can_serve"] is True
    assert findings["BLAS"]["figures"]["blas_gflops"] > 0
    assert findings["Model"]["figures"]["present"] is True
    assert {"Python", "Platform", "Memory", "Packages", "MLX", "Cache", "Address"} <= set(findings)


def test_the_doctor_says_what_to_mend(tmp_path: Path) -> None:
    """A port in use and a missing model fail, each with its mend; the table is for people."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = _pharos("doctor", "--port", port, "--model", str(tmp_path / "none"))
    assert done.returncode == 1
    failing = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert ["Model", "Address"] == [line.split()[1] for line in failing]
    assert done.stdout.count("→") >= 2
    assert "Serving would fail: Model, Address." in done.stdout


def test_the_doctor_reports_wrong_settings() -> None:
    """Wrong settings are findings too, not an end of the examination."""
    done = _pharos("doctor", "--json", "--port", "x", environment={"PHAROS_X": "1"})
    report = json.loads(done.stdout)
    wrong = [each for each in report["findings"] if each["name"] == "Settings"]
    assert (done.returncode, report["can_serve"], len(wrong)) == (1, False, 2)
    assert all(each["mend"] for each in wrong)
