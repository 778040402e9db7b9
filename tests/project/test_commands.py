"""The commands, run as a person runs them: in a process of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import mlx_pharos
from mlx_pharos.engine.models.source import STARTER_ENTRY
from mlx_pharos.engine.models.store import Store
from mlx_pharos.settings import Settings
from mlx_pharos.sources import SECRETS, flag_of
from mlx_pharos.validation.access import exposures
from support.gguf_writer import write_tiny_gguf
from support.served import serve_model
from support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Sequence


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
        found = re.search(rf"{flag_of(name)}\b(?!-)", text)
        assert bool(found) == (name not in SECRETS), name
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


def test_a_model_without_its_flag_gets_a_hint() -> None:
    """Who writes the model as pull takes it learns how serve takes it."""
    done = _pharos("serve", "starter")
    assert done.returncode == 2
    assert "did you mean --model starter?" in done.stderr


@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("pull", "starter")])
def test_a_model_that_cannot_be_fetched_ends_with_1(command: Sequence[str], tmp_path: Path) -> None:
    """Trying again may help, so it is not the exit code of wrong settings."""
    address = "http://127.0.0.1:9/"
    done = _pharos(*command, environment={"PIP_INDEX_URL": address, "PIP_RETRIES": "0"})
    assert done.returncode == 1, done.stderr
    assert "could not be fetched" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("pull", "starter")])
@pytest.mark.parametrize("place", ["file/cache", "x" * 300, "proc"])
def test_a_cache_that_cannot_be_made_is_a_sentence(
    command: Sequence[str], place: str, tmp_path: Path
) -> None:
    """Wherever it should be, place and variable are named; serve takes it for a wrong setting."""
    (tmp_path / "file").write_text("")
    directory = "/proc/nope" if place == "proc" else str(tmp_path / place)
    done = _pharos(*command, environment={"PHAROS_CACHE_DIR": directory})
    assert done.returncode == (2 if command[0] == "serve" else 1), done.stderr
    assert directory in done.stderr
    assert "PHAROS_CACHE_DIR" in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_serves_and_ends_with_0(tiny_model: Path) -> None:
    """Serve listens where it says, answers with the model, and ends with 0 on SIGTERM."""
    with serve_model(tiny_model, "--served-model-name", "tiny") as served:
        url = f"http://{served.address}/v1/models"
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert json.load(answer)["data"][0]["id"] == "tiny"


@pytest.mark.parametrize(
    ("host", "key", "exposed"),
    [
        ("0.0.0.0", None, True),
        ("models.example.org", None, True),
        ("0.0.0.0", "secret", False),
        ("127.0.0.2", None, False),
        ("localhost", None, False),
        ("127.example.org", None, True),
        ("::ffff:127.0.0.1", None, False),
        ("::", None, True),
        ("::1", None, False),
    ],
)
def test_strangers_can_come_in_only_over_the_network_without_a_key(
    host: str, key: str | None, *, exposed: bool
) -> None:
    """A server is exposed where it listens beyond the machine and asks for no key."""
    settings = Settings.model_validate({"host": host, "api_key": key})
    assert bool(exposures(settings)) is exposed


@pytest.mark.parametrize(
    ("fields", "exposed"),
    [
        ({"ops_host": "0.0.0.0"}, False),
        ({"ops_host": "0.0.0.0", "ops_port": 0}, True),
        ({"ops_host": "::", "ops_port": 9090}, True),
        ({"ops_host": "127.0.0.2", "ops_port": 0}, False),
        ({"ops_host": "0.0.0.0", "ops_port": 0, "api_key": "secret"}, False),
        ({"ops_host": "0.0.0.0", "ops_port": 0, "metrics_api_key": "secret"}, False),
    ],
)
def test_strangers_cannot_look_at_operations_without_a_key(
    fields: dict[str, object], *, exposed: bool
) -> None:
    """The port for operations is judged as the main one, where there is such a port."""
    found = exposures(Settings.model_validate(fields))
    assert (["ops_host"] if exposed else []) == [each.subject for each in found]


def test_serve_refuses_operations_for_strangers() -> None:
    """Nothing is started, and the report names the address and what to do."""
    done = _pharos("serve", "--port", "0", "--ops-port", "0", "--ops-host", "0.0.0.0")
    assert done.returncode == 2
    assert "everybody who reaches it could see how the server is" in done.stderr
    for mend in ("PHAROS_METRICS_API_KEY", "127.0.0.1", "--allow-open-network"):
        assert mend in done.stderr


def test_serve_refuses_a_network_without_a_key() -> None:
    """Without a key nothing is started on a network's address, and the report has the mends."""
    done = _pharos("serve", "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 2
    assert "everybody who reaches it could use the model" in done.stderr
    for mend in ("PHAROS_API_KEY", "--api-keys-file", "127.0.0.1", "--allow-open-network"):
        assert mend in done.stderr


def test_serve_warns_before_it_listens_to_an_open_network(tmp_path: Path) -> None:
    """Where the operator allows it, a warning comes at the start; here the model then fails."""
    write_tiny_gguf(tmp_path / "m.gguf", metadata={"tokenizer.ggml.model": "bert"})
    flags = ["--host", "0.0.0.0", "--allow-open-network", "--port", "0", "--model", "m.gguf"]
    done = _pharos("serve", *flags)
    assert done.returncode == 1
    assert "warning: host: 0.0.0.0: everybody who reaches it could use the model" in done.stderr


def test_a_log_for_programs_is_json_alone(tiny_model: Path) -> None:
    """Written to a file or a pipe, every line of a server's life is JSON."""
    command = [sys.executable, "-m", "mlx_pharos", "serve", "--model", str(tiny_model)]
    with subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        lines = []
        for line in server.stderr:
            lines.append(json.loads(line))
            if "is ready" in lines[-1]["event"]:
                server.terminate()
    assert any("listens on http://" in line["event"] for line in lines)
    assert {"info"} == {line["level"] for line in lines}
    assert server.returncode == 0


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


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="it has no folder that nobody can write to")
@pytest.mark.parametrize("here", [True, False])
def test_the_doctor_knows_what_a_cache_that_cannot_be_written_means(
    tiny_model: Path, *, here: bool
) -> None:
    """A model that is complete is served from a disk that is read-only; another has no place."""
    model = str(tiny_model) if here else "starter"
    options = ("--model", model, "--port", "0", "--cache-dir", "/proc/none")
    done = _pharos("doctor", "--json", *options)
    report = json.loads(done.stdout)
    (cache,) = [each for each in report["findings"] if each["name"] == "Cache"]
    assert ("warning" if here else "error") == cache["status"]
    assert report["can_serve"] is here
    if here:
        with serve_model(tiny_model, *options[2:]) as served:
            address = f"http://{served.address}/readyz"
            assert b"ready" in urllib.request.urlopen(address, timeout=15).read()


def test_the_doctor_ends_quietly_when_its_reader_has_left() -> None:
    """`pharos doctor | head -1` shows a line and no traceback."""
    command = [sys.executable, "-m", "mlx_pharos", "doctor"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as doctor:
        assert doctor.stdout is not None
        assert doctor.stderr is not None
        assert doctor.stdout.readline().startswith("ok")
        doctor.stdout.close()
        assert doctor.stderr.read() == ""
        assert doctor.wait(15) == 1


def test_an_interrupted_fetch_says_that_it_can_go_on(tmp_path: Path) -> None:
    """Ctrl-C while a model is fetched ends with 130 and one line; what waits for a lock shows it."""
    store = Store(tmp_path / "cache")
    command = [sys.executable, "-m", "mlx_pharos", "pull", "starter"]
    with (
        store.lock(STARTER_ENTRY),
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as pull,
    ):
        assert pull.stderr is not None
        assert "waiting for it" in pull.stderr.readline()
        pull.send_signal(signal.SIGINT)
        assert pull.stderr.read() == "\nInterrupted. Run it again to go on.\n"
        assert pull.wait(15) == 130


def _model_finding(model: object, *flags: str) -> tuple[dict[str, Any], int]:
    done = _pharos("doctor", "--json", "--port", "0", "--model", str(model), *flags)
    findings = {each["name"]: each for each in json.loads(done.stdout)["findings"]}
    return findings["Model"], done.returncode


def test_the_doctor_knows_what_mlx_lm_does_not_load(tmp_path: Path) -> None:
    """A directory with an unknown model type fails before it is served."""
    directory = write_tiny_model(tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    finding, code = _model_finding(directory)
    assert (finding["status"], code) == ("error", 1)
    assert "'unheard_of' is not supported" in finding["text"]


def test_the_doctor_says_what_serve_does_first(tmp_path: Path) -> None:
    """A file that is here is converted, not fetched; a repository has to be reachable."""
    write_tiny_gguf(tmp_path / "m.gguf")
    finding, code = _model_finding(tmp_path / "m.gguf")
    assert (finding["status"], code) == ("note", 0)
    assert "has to be converted once" in finding["text"]
    fetched = _pharos("doctor", "--port", "0", "--model", "starter").stdout
    assert "starter is not on this machine yet" in fetched
    assert "Serving would work, if the model can be fetched" in fetched


def test_the_doctor_reports_wrong_settings() -> None:
    """Wrong settings are findings too, not an end of the examination."""
    done = _pharos("doctor", "--json", "--port", "x", environment={"PHAROS_X": "1"})
    report = json.loads(done.stdout)
    wrong = [each for each in report["findings"] if each["name"] == "Settings"]
    assert (done.returncode, report["can_serve"], len(wrong)) == (1, False, 2)
    # The rest is examined as far as it is known: the model, but no address without its port.
    names = {each["name"] for each in report["findings"]}
    assert "Model" in names
    assert "Address" not in names
    assert all(each["mend"] for each in wrong)
