"""All groups together: the one object that the rest of the program is given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ..engine.models.model_code import code_policy
from ..resilience.sizing import thread_count
from .engine import EngineSettings
from .limits import LimitSettings
from .model import STARTER, ModelSettings
from .network import NetworkSettings
from .restarts import RestartSettings
from .telemetry import TelemetrySettings
from .text import check_text

if TYPE_CHECKING:
    from pydantic_settings import PydanticBaseSettingsSource

    from ..engine.models.model_code import CodePolicy

__all__ = ["GROUPS", "STARTER", "Settings"]

GROUPS = ("Model", "Network", "Limits", "Engine", "Restarts", "Answers", "Telemetry", "Logs")
"""The order of the settings' groups in the help and in the reference."""


class Settings(
    TelemetrySettings,
    RestartSettings,
    EngineSettings,
    LimitSettings,
    NetworkSettings,
    ModelSettings,
    BaseSettings,
):
    """What the operator decides. Frozen; every value is valid once the object exists.

    Construction takes explicit values alone; :func:`mlx_pharos.config.load_settings`
    reads flags, environment and file. The bases stand in reverse, because
    pydantic takes the fields of the last base first.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="PHAROS_",
        env_ignore_empty=True,
        extra="forbid",
        protected_namespaces=(),
        allow_inf_nan=False,
        validate_default=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take explicit values alone: ``sources`` reads the rest and remembers where it was."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)

    @field_validator("*", mode="before")
    @classmethod
    def _check_text(cls, value: object, about: ValidationInfo) -> object:
        assert about.field_name is not None
        return check_text(value, cls.model_fields[about.field_name])

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        """Compare settings with each other; one line for each that does not fit, its name first."""
        wrong: list[str] = []
        admitted = self.max_batch + self.max_queue
        if 0 < self.threads <= admitted:
            wrong.append(
                f"threads should be 0, or more than max_batch + max_queue ({admitted}): "
                "a running request holds a thread, and health checks need one"
            )
        enough = 0 if wrong else self.threads
        threads = thread_count(enough, max_batch=self.max_batch, max_queue=self.max_queue)
        if 0 < self.connection_limit <= threads:
            wrong.append(
                f"connection_limit should be 0, or more than there are threads ({threads})"
            )
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    @property
    def code_policy(self) -> CodePolicy:
        """What becomes of code that comes with a model."""
        return code_policy(trust=self.trust_remote_code, ignore=self.ignore_model_code)

    @property
    def served_names(self) -> tuple[str, ...]:
        """The names that requests may use; the first is the one in answers."""
        return self.served_model_name or (_name_of(self.model),)


def _name_of(model: str) -> str:
    """Derive a name for requests: a repository's id as it is, a path's last part."""
    path = Path(model)
    if model == STARTER or not (
        path.is_absolute() or model.startswith((".", "~")) or path.exists()
    ):
        return model.removesuffix(".gguf")
    return path.expanduser().resolve().name.removesuffix(".gguf")
