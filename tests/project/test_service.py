"""The files of service managers: what they say, and what the managers' own programs say of them."""

from __future__ import annotations

import plistlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_pharos.service import Service, launchd_plist, systemd_unit
from mlx_pharos.service.command import print_service


def _service(
    *,
    arguments: tuple[str, ...] = ("serve",),
    environment: tuple[tuple[str, str], ...] = (),
    grace: float = 25.0,
    user: str = "",
    cuda: bool = False,
) -> Service:
    return Service(
        command=("/opt/pharos/bin/pharos", *arguments),
        directory=Path("/opt/pharos"),
        caches=(Path("/var/cache/pharos"), Path("/var/cache/a hub")),
        environment=environment,
        grace=grace,
        user=user,
        cuda=cuda,
    )


@pytest.fixture
def analyze() -> str:
    """Systemd's own checker."""
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("systemd-analyze is not on this machine")
    return found


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=18, check=False)


@pytest.mark.parametrize(
    "flags", [("--system", "--user", "daemon"), ("--system", "--port", "1"), ("--port", "1")]
)
def test_systemd_takes_the_unit(
    flags: tuple[str, ...],
    analyze: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`systemd-analyze verify` finds no fault with what is printed for this machine."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    manager = "--system" if "--system" in flags else "--user"
    assert 0 == print_service(["systemd", *flags], {})
    unit = tmp_path / "pharos-printed.service"
    unit.write_text(capsys.readouterr().out, encoding="utf-8")
    done = _run(analyze, manager, "verify", "--man=no", unit)
    assert ("", 0) == (done.stderr, done.returncode)


@pytest.mark.parametrize("cuda", [False, True])
def test_the_unit_of_the_system_is_hardened(cuda: bool, analyze: str, tmp_path: Path) -> None:
    """`systemd-analyze security` calls its exposure OK: below 2.5 of 10, also with NVIDIA's driver."""
    unit = tmp_path / "pharos-hardened.service"
    unit.write_text(systemd_unit(_service(user="daemon", cuda=cuda)), encoding="utf-8")
    done = _run(analyze, "security", "--offline=true", "--threshold=25", unit)
    assert 0 == done.returncode, done.stdout[-300:]
    assert ("PrivateDevices=yes" in unit.read_text(encoding="utf-8")) != cuda


def test_no_manager_kills_before_the_grace_is_over() -> None:
    """Both wait 20 s longer than running requests get, whatever that is."""
    for grace in (0.0, 25.0, 3600.5):
        made = _service(grace=grace)
        found = re.search(r"^TimeoutStopSec=(\d+)$", systemd_unit(made), flags=re.MULTILINE)
        assert found is not None
        assert int(found[1]) >= grace + 20
        assert plistlib.loads(launchd_plist(made, log="/x").encode())["ExitTimeOut"] >= grace + 20


def test_arguments_and_variables_survive_the_quoting(analyze: str, tmp_path: Path) -> None:
    """Blanks, quotes, percents, dollars and backslashes reach the program as they were given."""
    odd = "a b\"c%h$HOME\\d'e"
    unit = tmp_path / "pharos-odd.service"
    made = _service(
        arguments=("serve", "--model", odd), environment=(("PHAROS_MODEL", odd),), user="daemon"
    )
    unit.write_text(systemd_unit(made), encoding="utf-8")
    lines = dict(line.split("=", 1) for line in unit.read_text().splitlines() if "=" in line)
    command = shlex.split(lines["ExecStart"])
    assert odd == command[3].replace("%%", "%").replace("$$", "$")
    # The program is not there: that alone is found.
    assert re.fullmatch(
        r"\S+: Command /opt/pharos/bin/pharos is not executable: No such file or directory\n",
        _run(analyze, "verify", "--man=no", unit).stderr,
    )
    assert odd == plistlib.loads(launchd_plist(made, log="/x").encode())["ProgramArguments"][3]


def test_launchd_starts_it_again_unless_it_ended_well() -> None:
    """The keys that launchd needs are there, and of their types."""
    agent = plistlib.loads(launchd_plist(_service(), log="/tmp/log").encode())
    assert {"SuccessfulExit": False} == agent["KeepAlive"]
    assert agent["RunAtLoad"] is True
    assert "/tmp/log" == agent["StandardErrorPath"]
    assert "UserName" not in agent
    daemon = plistlib.loads(launchd_plist(_service(user="ada"), log="/tmp/log").encode())
    assert "ada" == daemon["UserName"]


def test_the_printed_file_starts_this_installation_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its flags and its variables, and the grace that they make."""
    variables = {"PHAROS_SHUTDOWN_GRACE": "90", "PHAROS_API_KEY": "secret", "OTEL_X": "1", "X": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, text in variables.items():
            patch.setenv(name, text)
        assert 0 == print_service(["launchd", "--port", "9000"], variables)
    printed, notes = capsys.readouterr()
    job = plistlib.loads(printed.encode())
    program, *arguments = job["ProgramArguments"]
    assert Path(program).parent == Path(sys.executable).parent
    assert ["serve", "--log-format", "json", "--port", "9000"] == arguments[-5:]
    assert str(tmp_path) == job["WorkingDirectory"]
    assert "90" == job["EnvironmentVariables"]["PHAROS_SHUTDOWN_GRACE"]
    assert 110 == job["ExitTimeOut"]
    assert "secret" not in printed + notes
    assert ["OTEL_X", "PHAROS_API_KEY"] == re.findall(r"pharos: (\S+) is set here", notes)


@pytest.mark.parametrize("given", [["runit"], ["systemd", "--port", "no"], ["--no-such-flag"]])
def test_what_cannot_be_served_is_not_printed(
    given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong flag is named, as `pharos serve` names it, and the exit code is 2."""
    assert 2 == print_service(given, {})
    printed, notes = capsys.readouterr()
    assert "" == printed
    assert notes.startswith("pharos: ")


def test_the_command_has_a_help() -> None:
    """`pharos service print --help` shows its own flags and those of `pharos serve`."""
    done = _run(sys.executable, "-m", "mlx_pharos", "service", "print", "--help")
    assert 0 == done.returncode
    assert {"--system", "--max-batch"} <= set(done.stdout.split())
    assert 2 == _run(sys.executable, "-m", "mlx_pharos", "service").returncode
