"""The configuration of a server: its settings, and whether this machine can fulfil them.

:func:`load_settings` reads flags, environment and file into one frozen
:class:`Settings`; :class:`ConfigValidator` looks at what a value alone cannot
tell: a model's files, an address that is taken, a package that is missing. Both
say everything that is wrong at once, before anything binds or loads.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import pydantic

from .engine.models.directory import inspect_directory
from .engine.models.hub_cache import complete_snapshot
from .engine.models.source import classify, resolve_local
from .engine.models.store import Store
from .keys.key_file import KeyFile
from .resilience.errors import ModelError
from .settings import STARTER, Settings, default_cache_dir
from .sources import ConfigurationError, Problem, load_settings, unknown_variable, variable_of
from .telemetry.otlp import otlp_problems
from .validation import DependencyError, ValidationError
from .validation.access import check_access, exposures
from .validation.address import find_free_port, listener_beside, overlap, try_to_listen
from .validation.packages import (
    MLX_BACKENDS,
    check_backend,
    check_package,
    check_python,
    requirements,
)
from .validation.storage import writable_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from .engine.models.source import Source
    from .resilience.api_keys import ApiKey

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

_SHORTEST_KEY = 16
"""Characters of a key that nobody guesses over a network."""


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
        for together in (_ADDRESS, _OPERATIONS):
            if wrong & together:  # a part of an address says nothing about the others
                wrong |= together
        unrelated = [each for each in more if each.subject not in wrong]
        raise ConfigurationError([*error.problems, *unrelated]) from None
    problems = ConfigValidator(settings).validate_all_config()
    if problems:
        raise ConfigurationError(problems)
    return settings


_ADDRESS = frozenset({"host", "port", "api_key", "api_keys_file", "allow_open_network"})
"""Settings that make up who can come in, together."""
_OPERATIONS = (_ADDRESS - {"host", "port"}) | {"ops_host", "ops_port", "metrics_api_key"}


class ConfigValidator:
    """Checks one server's configuration against this machine.

    Changes nothing but for a file that is made and removed to see whether the
    cache directory can be written. Each method returns what it found or raises
    one error with one problem; :meth:`validate_all_config` collects them.
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
            ValidationError: It is no port, or the address is taken, reserved or not this
                machine's; the text names a port nearby that is free.
        """
        number = self._validate_field("port", port)
        assert isinstance(number, int)
        if host is not None:
            try_to_listen(host, number)
        return number

    def validate_ops_port(self) -> int | None:
        """Return the port for operations, tried like the other one; None where there is none.

        Raises:
            ValidationError: As for :meth:`validate_port`, or it is the port of the API.
        """
        port, host = self._settings.ops_port, self._settings.ops_host
        if port is None:
            return None
        if port and port == self._settings.port and overlap(host, self._settings.host):
            text = f"is {port}, the port of the API; choose another with --ops-port"
            raise ValidationError("ops_port", text)
        try_to_listen(host, port, prefix="ops_")
        return port

    def find_free_port(self, ports: Iterable[int], *, host: str = "127.0.0.1") -> int:
        """Return the first of the ports that is free on every address of the host.

        Raises:
            ValidationError: None is, or one of them is no port.
        """
        return find_free_port(map(self.validate_port, ports), host=host)

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
        """Return what kind of model a name means; a local one is whole, and harmless as set.

        Raises:
            ValidationError: There is no such model, or it cannot be served.
        """
        code = self._settings.code_policy
        try:
            source = classify(os.fspath(model), code=code)
            if source.kind == "hub" and (snapshot := complete_snapshot(source.name)) is not None:
                inspect_directory(snapshot, code=code)
        except ModelError as error:
            raise ValidationError("model", error.message) from None
        return source

    def validate_cache_dir(self) -> int | None:
        """Return the free bytes where models are kept; None where it is read-only and may be.

        It may be where the model is complete, so that nothing has to be written for it; and where
        there is no such model, which :meth:`validate_model_path` says.

        Raises:
            ValidationError: The model has to be fetched or converted, and nothing can be written.
        """
        settings = self._settings
        try:
            return writable_bytes(settings.cache_dir)
        except ValidationError:
            if self._has_to_be_made(settings.model):
                raise
            return None

    def validate_dependency(self, name: str) -> str:
        """Return the installed version of a distribution.

        Raises:
            DependencyError: It is not installed, or not in the range that this distribution's
                own metadata asks for.
        """
        return check_package(name)

    def validate_dependencies(self) -> dict[str, str]:
        """Return the versions of everything that serving needs, Python first.

        Raises:
            ConfigurationError: Some are missing or of other versions; every one is in it.
        """
        found, problems = {}, list[Problem]()
        try:
            found["python"] = check_python()
        except DependencyError as error:
            problems += error.problems
        for name in requirements():
            try:
                found[name] = check_package(name)
            except DependencyError as error:
                problems += error.problems
        if problems:
            raise ConfigurationError(problems)
        return found

    def validate_mlx_backend(self) -> str:
        """Return the distribution that brings MLX's compiled half.

        Raises:
            DependencyError: On Linux there is none, or more than one.
        """
        return check_backend()

    def validate_keys(self) -> tuple[ApiKey, ...]:
        """Return the keys of the file of keys; none where no file is set.

        Raises:
            KeyFileError: The file cannot be used.
            ValidationError: It holds no key, so nobody could come in.
        """
        path = self._settings.api_keys_file
        keys = KeyFile(path).read() if path is not None else ()
        if path is not None and not keys and self._settings.api_key is None:
            raise ValidationError(str(path), "holds no key; pharos keys add NAME makes one")
        return keys

    def validate_access(self) -> None:
        """Check that strangers cannot come in, unless they may.

        Raises:
            ConfigurationError: The server would listen to a network without a key.
        """
        check_access(self._settings)

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
            self.validate_ops_port,
            self.validate_access,
            self.validate_keys,
            partial(self.validate_model_path, settings.model),
            self.validate_cache_dir,
            self.validate_dependencies,
            self.validate_mlx_backend,
            self.validate_telemetry,
        ]
        problems: list[Problem] = []
        for check in checks:
            try:
                check()
            except ConfigurationError as error:
                problems += error.problems
        return tuple(problems)

    def warnings(self) -> tuple[Problem, ...]:
        """Return what does not keep the server from serving, but should be known before it does."""
        settings = self._settings
        found: list[Problem] = []
        if settings.allow_open_network:
            found += exposures(settings)
        if beside := listener_beside(settings.host, settings.port):
            text = f"{beside} is another program's; clients that say localhost may reach that one"
            found.append(Problem(subject="port", text=f"{text}; choose another with --port"))
        key = settings.api_key.get_secret_value() if settings.api_key else ""
        if key and len(key) < _SHORTEST_KEY:
            text = f"is shorter than {_SHORTEST_KEY} characters, so it can be guessed"
            found.append(
                Problem(subject="PHAROS_API_KEY", text=f"{text}; pharos keys add NAME makes one")
            )
        return tuple(found)

    def _has_to_be_made(self, model: str) -> bool:
        """Whether a model is one that is not on this machine yet, or only as a file to convert."""
        try:
            source = self.validate_model_path(model)
        except ValidationError:
            return False
        try:
            return resolve_local(source, Store(self._settings.cache_dir)) is None
        except ModelError:  # what may be there cannot be read
            return True

    def _validate_field(self, field: str, value: object, *, subject: str = "") -> object:
        """Return what a setting makes of a value, whatever the other settings are."""
        try:
            made = Settings.model_validate({field: value})
        except pydantic.ValidationError as error:
            text = error.errors()[0]["msg"].removeprefix("Value error, ").removeprefix("Input ")
            raise ValidationError(subject or field, text) from None
        return getattr(made, field)
