"""ConfigValidator: what a value alone cannot tell."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mlx_pharos.config import (
    ConfigurationError,
    ConfigValidator,
    DependencyError,
    Settings,
    ValidationError,
    configure,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def _addresses(host: str) -> set[str]:
    """Return the addresses of a host that this machine can listen on."""
    found = set()
    for family, kind, _, _, place in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
        with contextlib.suppress(OSError), socket.socket(family, kind) as probe:
            probe.bind(place)
            found.add(str(place[0]))
    return found


_ipv6 = pytest.mark.skipif(not _addresses("::1"), reason="this machine has no IPv6")


@pytest.mark.parametrize(
    ("port", "expected"), [(8080, 8080), ("9000", 9000), (0, 0), (65535, 65535)]
)
def test_ports_are_numbers_up_to_65535(port: object, expected: int) -> None:
    """A port is a number, or the text of one."""
    assert expected == ConfigValidator().validate_port(port)


@pytest.mark.parametrize("port", [-1, 65536, "http", None, 1.5, ""])
def test_what_is_no_port_is_refused(port: object) -> None:
    """Anything else is refused, and the error says what is at fault."""
    with pytest.raises(ValidationError, match="port: should be"):
        ConfigValidator().validate_port(port)


def test_an_address_in_use_is_found_before_the_start() -> None:
    """A port that another program listens on is named, with what to do."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ValidationError, match=r"in use by another program.*--port"):
            ConfigValidator().validate_port(port, host="127.0.0.1")


@contextmanager
def _listener(host: str) -> Iterator[int]:
    """Listen on one address, of IPv6 alone where it is one, and give the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as other:
        yield other.getsockname()[1]


@pytest.mark.parametrize(
    ("taken", "host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        ("0.0.0.0", "127.0.0.1"),
        ("127.0.0.1", "localhost"),
        pytest.param("::1", "::1", marks=_ipv6),
        pytest.param("::1", "::", marks=_ipv6),
    ],
)
def test_a_port_in_use_is_found_in_both_families(taken: str, host: str) -> None:
    """Whichever of a host's addresses is taken, the report names a port that is really free."""
    with _listener(taken) as port:
        with pytest.raises(ValidationError, match="in use by another program") as caught:
            ConfigValidator().validate_port(port, host=host)
        found = re.search(r"(\d+) is free: --port \1", str(caught.value))
        assert found, caught.value
        assert int(found[1]) == ConfigValidator().validate_port(int(found[1]), host=host)


@_ipv6
@pytest.mark.parametrize("taken", ["127.0.0.1", "::1"])
def test_a_name_of_two_addresses_needs_both(monkeypatch: pytest.MonkeyPatch, taken: str) -> None:
    """Where localhost is IPv4 and IPv6, a port that is taken in one of them is taken."""
    resolve = socket.getaddrinfo

    def both(host: str, *rest: Any, **more: Any) -> list[Any]:
        names = ("127.0.0.1", "::1") if host == "localhost" else (host,)
        return [each for name in names for each in resolve(name, *rest, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    with _listener(taken) as port, pytest.raises(ValidationError, match="in use"):
        ConfigValidator().validate_port(port, host="localhost")
    assert ConfigValidator().validate_port(port, host="localhost") == port


def test_the_port_for_operations_is_tried_too() -> None:
    """A taken port for operations, and one that is the API's, are named as their own setting."""
    with _listener("127.0.0.1") as port:
        problems = ConfigValidator(Settings(port=0, ops_port=port)).validate_all_config()
        assert ["ops_port"] == [each.subject for each in problems]
        assert re.search(r"\d+ is free: --ops-port \d+", problems[0].text)
    validator = ConfigValidator(Settings(port=port, ops_port=port))
    assert ["ops_port"] == [each.subject for each in validator.validate_all_config()]
    validator = ConfigValidator(Settings(port=0, ops_port=0))
    assert validator.validate_all_config() == ()


@_ipv6
def test_the_same_port_in_the_other_family_is_a_warning() -> None:
    """A program on ::1 does not keep the server from 127.0.0.1, but localhost may mean it."""
    with _listener("::1") as port:
        validator = ConfigValidator(Settings(port=port))
        validator.validate_port(port, host="127.0.0.1")
        assert f"[::1]:{port} is another program's" in validator.warnings()[0].text
    assert ConfigValidator(Settings(port=port)).warnings() == ()


def test_a_free_port_is_found_in_a_range() -> None:
    """The first port that is free is returned; none, or a number that is no port, is an error."""
    with _listener("127.0.0.1") as port:
        validator = ConfigValidator()
        found = validator.find_free_port(range(port, min(port + 100, 65535)))
        assert port < found
        with pytest.raises(ValidationError, match="none of 1 ports"):
            validator.find_free_port([port])
        with pytest.raises(ValidationError, match="port: should be"):
            validator.find_free_port([65536])


@pytest.mark.skipif(
    sys.platform != "linux"
    or os.geteuid() != 0
    or int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) < 81,
    reason="only root can become a user that may not listen on port 80",
)
def test_a_port_that_needs_rights_is_said() -> None:
    """An ordinary user is told that port 80 is reserved, and which one is not."""
    code = (
        "import os\n"
        "from mlx_pharos.config import ConfigValidator, ValidationError\n"
        "from mlx_pharos.validation.address import _problem\n"
        "check = ConfigValidator().validate_port\n"
        # All is loaded while the folder of this checkout may still be read.
        "_problem(PermissionError(13, ''), check(0, host='127.0.0.1') or '127.0.0.1', 80, flag='')\n"
        "os.setgid(65534), os.setuid(65534)\n"
        "check(80, host='127.0.0.1')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=18, check=False
    )
    assert re.search(r"needs privileges .* below 1024 .* \d+ is free", done.stderr), done.stderr


def test_an_address_of_another_machine_is_refused() -> None:
    """An address that is not this machine's cannot be listened on."""
    with pytest.raises(ValidationError, match="host"):
        ConfigValidator().validate_port(0, host="192.0.2.1")


def test_a_variable_is_read_as_its_setting() -> None:
    """A variable's text becomes the setting's value; an unset one is None."""
    validator = ConfigValidator(environment={"PHAROS_MAX_BODY_BYTES": "1MiB"})
    assert validator.validate_env_var("PHAROS_MAX_BODY_BYTES") == 1024**2
    assert validator.validate_env_var("PHAROS_PORT") is None
    assert validator.validate_env_var("PHAROS_PORT", "81") == 81


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("PHAROS_PROT", "1", "did you mean PHAROS_PORT"), ("PHAROS_PORT", "x", "PHAROS_PORT: should")],
)
def test_a_wrong_variable_is_refused(name: str, value: str, message: str) -> None:
    """An unknown variable and a wrong value are refused by the variable's name."""
    with pytest.raises(ValidationError, match=message):
        ConfigValidator().validate_env_var(name, value)


def test_a_model_directory_is_accepted(tiny_model: Path) -> None:
    """A directory that holds a whole model is a model."""
    assert ConfigValidator().validate_model_path(tiny_model).kind == "directory"


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    """A directory without a model, and a path with nothing, are refused with the path."""
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ValidationError, match=str(path)):
            ConfigValidator().validate_model_path(path)


def test_dependencies_have_versions() -> None:
    """An installed package gives its version, a missing one is an error of its own kind."""
    assert ConfigValidator().validate_dependency("flask").startswith("3.")
    with pytest.raises(DependencyError, match="is not installed"):
        ConfigValidator().validate_dependency("no-such-package-of-pharos")


@pytest.mark.parametrize("name", ["mlx-lm", "mlx_lm", "MLX.LM"])
def test_a_version_out_of_range_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """A package is compared with the range in this distribution's own metadata."""
    assert ConfigValidator().validate_dependency(name) == "0.32.2"
    _install(tmp_path, "mlx-lm", "0.31.0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DependencyError, match=r"0\.31\.0.*==0\.32\.2.*pip install 'mlx-lm=="):
        ConfigValidator().validate_dependency(name)
    problems = ConfigValidator(Settings(port=0)).validate_all_config()
    assert "mlx-lm" in {each.subject for each in problems}


def test_every_dependency_is_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All that is wrong with what is installed comes in one report."""
    found = ConfigValidator().validate_dependencies()
    assert {"python", "mlx", "mlx-lm", "flask", "waitress", "pydantic"} <= found.keys()
    for name, version in (("flask", "2.0"), ("waitress", "4.0")):
        _install(tmp_path, name, version)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError) as caught:
        ConfigValidator().validate_dependencies()
    assert ["flask", "waitress"] == [each.subject for each in caught.value.problems]


def _install(folder: Path, name: str, version: str) -> None:
    """Write what an installer writes about a package, where it is found first."""
    place = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    place.mkdir()
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_checking_takes_less_than_100_ms(tiny_model: Path) -> None:
    """All checks together are quick, the tables of a small model's weights included."""
    validator = ConfigValidator(Settings(model=str(tiny_model), port=0))
    times = []
    for _ in range(5):
        begin = time.thread_time()  # of this thread: another program's load is not ours
        assert validator.validate_all_config() == ()
        times.append(time.thread_time() - begin)
    assert min(times) < 0.1


def test_this_machine_has_one_backend() -> None:
    """The tests run on a machine that has exactly one of MLX's backends."""
    assert ConfigValidator().validate_mlx_backend().startswith("mlx-")


def test_all_problems_of_the_machine_come_together(tmp_path: Path) -> None:
    """A missing model and a port in use are one report."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        settings = Settings(model=str(tmp_path / "none"), port=port)
        problems = ConfigValidator(settings).validate_all_config()
    assert {"model", "port"} == {each.subject for each in problems}


def test_a_good_configuration_has_no_problem(tiny_model: Path) -> None:
    """A model that is there and a free port pass."""
    assert ConfigValidator(Settings(model=str(tiny_model), port=0)).validate_all_config() == ()


def test_all_three_layers_are_one_report(tmp_path: Path) -> None:
    """Wrong values, values that do not go together, and the machine: nothing hides the rest."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        flags = ["--max-body-bytes", "x", "--threads", "2", "--connection-limit", "3"]
        with pytest.raises(ConfigurationError) as caught:
            configure([*flags, "--port", port, "--model", str(tmp_path / "none")])
    subjects = [each.subject for each in caught.value.problems]
    expected = ["--connection-limit", "--max-body-bytes", "--threads", "model", "port"]
    assert expected == sorted(subjects)


def test_what_cannot_be_known_is_not_said(tmp_path: Path) -> None:
    """Nothing is compared with the default of a setting that is wrong."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        (tmp_path / "pharos.toml").write_text(f"port = {other.getsockname()[1]}")
        flags = ["--max-batch", "x", "--threads", "2", "--host", "", "--model", str(tmp_path)]
        with pytest.raises(ConfigurationError) as caught:
            configure(flags)
        with pytest.raises(ConfigurationError) as unread:
            configure(["--port"])
    assert {"--max-batch", "--host", "model"} == {each.subject for each in caught.value.problems}
    assert ["command line"] == [each.subject for each in unread.value.problems]


def test_wrong_settings_and_a_wrong_machine_are_one_report(tmp_path: Path) -> None:
    """Where a setting is wrong, the rest is still checked against the machine."""
    with pytest.raises(ConfigurationError) as caught:
        configure(["--port", "x", "--model", str(tmp_path / "none")])
    assert {"--port", "model"} == {each.subject for each in caught.value.problems}


@pytest.mark.parametrize(
    ("variables", "subject", "text"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER", "otlp or none"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "udp"},
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
            "udp",
        ),
        (
            {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "collector"},
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
            "URL",
        ),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "nan"}, "OTEL_EXPORTER_OTLP_TIMEOUT", "greater than 0"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "-1"}, "OTEL_BSP_MAX_QUEUE_SIZE", "greater than 0"),
        ({"OTEL_METRIC_EXPORT_INTERVAL": "1e999"}, "OTEL_METRIC_EXPORT_INTERVAL", "greater"),
        ({"OTEL_BLRP_SCHEDULE_DELAY": " "}, "OTEL_BLRP_SCHEDULE_DELAY", "greater than 0"),
    ],
)
def test_telemetry_that_cannot_be_sent_is_said(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], subject: str, text: str
) -> None:
    """A variable of OpenTelemetry that asks for what is not offered ends the start, and is named."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    ConfigValidator().validate_telemetry()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        ConfigValidator().validate_telemetry()
    (problem,) = caught.value.problems
    assert subject == problem.subject
    assert text in problem.text


def test_grpc_without_its_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for gRPC without the extra learns how to install it."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc", None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ConfigurationError, match=r"mlx-pharos\[grpc\]"):
        ConfigValidator().validate_telemetry()
