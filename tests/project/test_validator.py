"""ConfigValidator: what a value alone cannot tell."""

from __future__ import annotations

import importlib.util
import socket
from typing import TYPE_CHECKING

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
    from pathlib import Path


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


@pytest.mark.skipif(
    importlib.util.find_spec("grpc") is not None, reason="says what is missing, and it is not"
)
def test_grpc_without_its_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for gRPC without the extra learns how to install it."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ConfigurationError, match=r"mlx-pharos\[grpc\]"):
        ConfigValidator().validate_telemetry()
