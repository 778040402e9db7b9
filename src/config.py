"""The configuration of a server: its settings, and whether this machine can fulfil them.

:func:`load_settings` reads flags, environment and file into one frozen
:class:`Settings`; :class:`ConfigValidator` looks at what a value alone cannot
tell: a model's files, an address that is taken, a package that is missing. Both
say everything that is wrong at once, before anything binds or loads.
"""

from __future__ import annotations

import errno
import importlib.metadata
import os
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING

import pydantic

from .engine.models.source import classify
from .resilience.errors import ModelError
from .settings import STARTER, Settings, default_cache_dir
from .sources import ConfigurationError, Problem, load_settings, unknown_variable, variable_of
from .telemetry.otlp import otlp_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .engine.models.source import Source

__all__ = [
    "MLX_BACKENDS",
    "STARTER",
    "ConfigValidator",
    "ConfigurationError",
    "DependencyError",
    "Problem",
    "Settings",
    "ValidationError",
    "configure",
    "default_cache_dir",
    "load_settings",
]

DEPENDENCIES = (
    "flask",
    "mlx",
    "mlx-lm",
    "msgspec",
    "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry-sdk",
    "psutil",
    "structlog",
    "waitress",
)
"""Distributions that serving needs beside those that this module has imported."""

MLX_BACKENDS = ("mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")
"""Distributions that bring MLX's compiled half on Linux, in one and the same file."""


def configure(arguments: Sequence[str] = ()) -> Settings:
    """Return the settings of this process, checked against this machine.

    Raises:
        ConfigurationError: Serving would fail; every reason is in it, those of
            the settings themselves and those of the machine.
    """
    try:
        settings = load_settings(arguments)
    except ConfigurationError as error:
        wrong = error.wrong_fields
        more = ConfigValidator(error.usable).validate_all_config() if error.usable else ()
        if wrong & {"host", "port"}:  # half of an address says nothing about the other half
            wrong |= {"host", "port"}
        unrelated = [each for each in more if each.subject not in wrong]
        raise ConfigurationError([*error.problems, *unrelated]) from None
    problems = ConfigValidator(settings).validate_all_config()
    if problems:
        raise ConfigurationError(problems)
    return settings


class ValidationError(ConfigurationError):
    """A value, a path or an address cannot be used."""

    def __init__(self, subject: str, text: str) -> None:
        super().__init__([Problem(subject=subject, text=text)])


class DependencyError(ConfigurationError):
    """A package that serving needs is missing, or two of them exclude each other."""

    def __init__(self, subject: str, text: str) -> None:
        super().__init__([Problem(subject=subject, text=text)])


class ConfigValidator:
    """Checks one server's configuration against this machine. Changes nothing.

    Each method returns what it found or raises one error with one problem;
    :meth:`validate_all_config` collects them.
    """

    def __init__(
        self, settings: Settings | None = None, *, environment: Mapping[str, str] | None = None
    ) -> None:
        """Check these settings (the defaults without any) and this environment (the process's)."""
        self._settings = settings or Settings()
        self._environment = os.environ if environment is None else environment

    def validate_port(self, port: object, *, host: str | None = None) -> int:
        """Return the port as a number; with a host, also try that it can be listened on.

        Raises:
            ValidationError: It is no port, or the address is taken or not this machine's.
        """
        number = self._validate_field("port", port)
        assert isinstance(number, int)
        if host is not None:
            _try_to_listen(host, number)
        return number

    def validate_env_var(self, name: str, value: str | None = None) -> object:
        """Return the value that a ``PHAROS_*`` variable sets; None where it is unset or empty.

        Raises:
            ValidationError: No setting has this variable, or the value is wrong.
        """
        fields = {variable_of(field): field for field in Settings.model_fields}
        if name not in fields:
            raise ValidationError(name, unknown_variable(name))
        text = self._environment.get(name, "") if value is None else value
        return self._validate_field(fields[name], text, subject=name) if text else None

    def validate_model_path(self, model: str | os.PathLike[str]) -> Source:
        """Return what kind of model a name means; the files of a local one are whole.

        Raises:
            ValidationError: There is no such model, or it cannot be served.
        """
        try:
            return classify(os.fspath(model))
        except ModelError as error:
            raise ValidationError("model", error.message) from None

    def validate_dependency(self, name: str) -> str:
        """Return the installed version of a distribution.

        Raises:
            DependencyError: It is not installed.
        """
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise DependencyError(
                name, "is not installed; install Pharos again, with its dependencies"
            ) from None

    def validate_mlx_backend(self) -> str:
        """Return the distribution that brings MLX's compiled half.

        Raises:
            DependencyError: On Linux there is none, or more than one.
        """
        if sys.platform == "darwin":
            return f"mlx-metal {self.validate_dependency('mlx-metal')}"
        found = [name for name in MLX_BACKENDS if _version(name)]
        if not found:
            raise DependencyError(
                "mlx",
                f"has no backend; install one: pip install 'mlx[cpu]=={_version('mlx')}', "
                "or mlx[cuda13] for NVIDIA",
            )
        if len(found) > 1:
            raise DependencyError(
                "mlx",
                f"has {len(found)} backends in one file ({', '.join(found)}); remove them "
                f"(pip uninstall {' '.join(found)}) and install the right one again",
            )
        return f"{found[0]} {_version(found[0])}"

    def validate_telemetry(self) -> None:
        """Check the variables of OpenTelemetry that decide where telemetry goes.

        Raises:
            ConfigurationError: What they ask for cannot be done; every reason is in it.
        """
        problems = otlp_problems(self._settings.otlp_endpoint)
        if problems:
            raise ConfigurationError(Problem(subject=name, text=text) for name, text in problems)

    def validate_all_config(self) -> tuple[Problem, ...]:
        """Return everything that would keep a server with these settings from serving."""
        settings = self._settings
        checks: list[Callable[[], object]] = [
            partial(self.validate_port, settings.port, host=settings.host),
            partial(self.validate_model_path, settings.model),
            self.validate_mlx_backend,
            self.validate_telemetry,
        ]
        checks += [partial(self.validate_dependency, name) for name in DEPENDENCIES]
        problems: list[Problem] = []
        for check in checks:
            try:
                check()
            except ConfigurationError as error:
                problems += error.problems
        return tuple(problems)

    def _validate_field(self, field: str, value: object, *, subject: str = "") -> object:
        """Return what a setting makes of a value, whatever the other settings are."""
        try:
            made = Settings.model_validate({field: value})
        except pydantic.ValidationError as error:
            text = error.errors()[0]["msg"].removeprefix("Value error, ").removeprefix("Input ")
            raise ValidationError(subject or field, text) from None
        return getattr(made, field)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _try_to_listen(host: str, port: int) -> None:
    """Bind the address for a moment; nothing is accepted."""
    where = f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError:
        raise ValidationError("host", f"{host} is no name or address of this machine") from None
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise ValidationError(*_bind_problem(error, where)) from None


def _bind_problem(error: OSError, where: str) -> tuple[str, str]:
    if error.errno == errno.EADDRINUSE:
        return "port", f"{where} is in use by another program; choose another with --port"
    if error.errno == errno.EACCES:
        return "port", f"{where} needs privileges that this user lacks; choose one above 1023"
    return "host", f"{where} cannot be listened on: {error.strerror}"
