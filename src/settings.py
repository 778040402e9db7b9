"""The settings: one frozen object, with a reason beside each default.

The same fields make ``pharos serve --help``, the environment variables, the keys of ``pharos.toml``
and ``docs/reference/settings.md``. Where values come from is the business of ``sources``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from .resilience.sizing import thread_count

if TYPE_CHECKING:
    from pydantic_settings import PydanticBaseSettingsSource

__all__ = ["AUTO_SIZE", "GROUPS", "STARTER", "Settings", "default_cache_dir", "parse_size"]

STARTER = "starter"
"""The name of the small model that can be served without choosing one."""

AUTO_SIZE = -1
"""The size in bytes that means: let the engine choose."""

GROUPS = ("Model", "Network", "Engine", "Answers", "Telemetry", "Logs")
"""The order of the settings' groups in the help and in the reference."""

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b?)\s*", re.IGNORECASE)
_LONGEST_NAME = 256
"""Characters of a served model name at most: it is a label of metrics and part of paths."""


def parse_size(value: object) -> object:
    """Turn ``10MiB``, ``1.5 GB`` or ``4096`` into bytes; leave what is no string alone.

    Raises:
        ValueError: The string is not a size.
    """
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value)
    if match is None or (match[3] and not match[2]):
        raise ValueError("should be a number of bytes, or a size such as 512KiB, 10MiB or 2GB")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " kmgt".index(match[2].lower() or " "))


def _size_or_auto(value: object) -> object:
    if isinstance(value, int) and value < 0:
        raise ValueError("should be auto, 0 or a size such as 2GiB")
    return AUTO_SIZE if value == "auto" else parse_size(value)


def _split_names(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def default_cache_dir() -> Path:
    """Return where this system keeps what can be fetched again."""
    if sys.platform == "darwin":
        return Path("~/Library/Caches/pharos")
    return Path("~/.cache/pharos")


def _setting(
    default: Any,  # noqa: ANN401 - whatever the field is
    description: str,
    *,
    group: str,
    reason: str,
    metavar: str = "",
    flag: bool = True,
    **limits: Any,  # noqa: ANN401 - pydantic's own arguments
) -> Any:  # noqa: ANN401 - takes the place of the field's value
    extra: dict[str, Any] = {"group": group, "reason": reason, "metavar": metavar, "flag": flag}
    return Field(default, description=description, json_schema_extra=extra, **limits)


class Settings(BaseSettings):
    """What the operator decides. Frozen; every value is valid once the object exists.

    Construction takes explicit values alone; :func:`mlx_pharos.config.load_settings`
    reads flags, environment and file.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="PHAROS_",
        env_ignore_empty=True,
        extra="forbid",
        protected_namespaces=(),
        validate_default=True,
    )

    model: str = _setting(
        STARTER,
        "The model: starter, a local MLX directory, a .gguf file of the llama family, "
        "or the id of a repository on the Hugging Face Hub.",
        group="Model",
        reason="A real chat model of 135 million parameters that every machine can run.",
        metavar="M",
        min_length=1,
    )
    served_model_name: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_names)] = (
        _setting(
            (),
            "The names that requests may use for the model, separated by commas; "
            "the first is the one in answers. Empty: derived from the model.",
            group="Model",
            reason="The last part of a path, or the id of a repository, is what people "
            "expect to type.",
            metavar="NAME[,NAME]",
        )
    )
    context_length: int = _setting(
        0,
        "Tokens of prompt and answer together at most. 0: what the model was made for.",
        group="Model",
        reason="The model's own limit is where its answers stay good; "
        "lower it to bound memory per request.",
        metavar="TOKENS",
        ge=0,
        le=2**24,
    )
    trust_remote_code: bool = _setting(
        False,
        "Run Python code that comes with the model.",
        group="Model",
        reason="A model is data; code in it would run with your rights.",
    )
    cache_dir: Path = _setting(
        default_cache_dir(),
        "Where fetched and converted models are kept.",
        group="Model",
        reason="Models can be fetched again, so they belong to the user's cache.",
        metavar="DIR",
    )
    host: str = _setting(
        "127.0.0.1",
        "The address to listen on.",
        group="Network",
        reason="Only programs on this machine can connect until you decide otherwise.",
        metavar="ADDRESS",
        min_length=1,
    )
    port: int = _setting(
        8080,
        "The TCP port to listen on. 0: a free one, which the log names.",
        group="Network",
        reason="It needs no privileges, and mlx_lm.server uses it too.",
        metavar="PORT",
        ge=0,
        le=65535,
    )
    api_key: SecretStr | None = _setting(
        None,
        "The key that clients of /v1 must send as a bearer token. Unset: none is asked for. "
        "There is no flag: other users of the machine can see the flags of a process.",
        group="Network",
        reason="On 127.0.0.1 a key protects little; set one before you change the host.",
        flag=False,
    )
    threads: int = _setting(
        0,
        "Threads that answer requests. 0: enough for every request that can be admitted, "
        "and some for refusals and health checks.",
        group="Network",
        reason="A running request holds a thread; with fewer, /livez would wait for streams.",
        metavar="N",
        ge=0,
        le=8192,
    )
    connection_limit: int = _setting(
        0,
        "Connections open at the same time at most, idle ones included. "
        "0: one per thread, and 128 for idle ones.",
        group="Network",
        reason="At the limit the server is deaf, so it must lie above the threads.",
        metavar="N",
        ge=0,
        le=65536,
    )
    max_body_bytes: Annotated[int, BeforeValidator(parse_size)] = _setting(
        10 * 1024**2,
        "The largest request body, for example 10MiB. A larger one is answered with 413.",
        group="Network",
        reason="It holds a prompt of over two million tokens; more is a mistake or an attack.",
        metavar="SIZE",
        ge=1024,
        le=2**30,
    )
    keep_alive: float = _setting(
        10.0,
        "Seconds without a token after which a stream gets a comment.",
        group="Network",
        reason="Proxies drop a silent connection after 30 to 60 seconds.",
        metavar="SECONDS",
        gt=0,
        le=3600,
    )
    shutdown_grace: float = _setting(
        25.0,
        "Seconds that running requests get to finish when the server is told to stop.",
        group="Network",
        reason="Kubernetes kills 30 seconds after it asks.",
        metavar="SECONDS",
        ge=0,
        le=86400,
    )
    max_batch: int = _setting(
        32,
        "Sequences decoded together at most.",
        group="Engine",
        reason="Beyond it each stream gets slower than people read on most machines.",
        metavar="N",
        ge=1,
        le=4096,
    )
    max_queue: int = _setting(
        64,
        "Sequences that wait for a place in the batch at most; "
        "a request beyond them is answered with 503 and Retry-After.",
        group="Engine",
        reason="Twice the batch: who is further behind does better to come back.",
        metavar="N",
        ge=0,
        le=65536,
    )
    prefill_step: int = _setting(
        0,
        "Prompt tokens worked off in one piece, between which running streams go on. "
        "0: chosen by device.",
        group="Engine",
        reason="Small pieces keep streams smooth, large ones use a GPU better.",
        metavar="TOKENS",
        ge=0,
        le=2**16,
    )
    prompt_cache: Annotated[int, BeforeValidator(_size_or_auto)] = _setting(
        "auto",
        "Memory for the KV caches of past prompts, for example 2GiB. "
        "auto: a share of the machine's; 0: off.",
        group="Engine",
        reason="A conversation's next turn repeats the last one; its prefill is then free.",
        metavar="SIZE",
    )
    dequantize: Literal["auto", "on", "off"] = _setting(
        "auto",
        "Expand a quantized model to float32 when it runs on the CPU. auto: where memory allows.",
        group="Engine",
        reason="On the CPU float32 with a fast BLAS is many times faster than 4 bits.",
    )
    blas: Literal["auto", "off"] = _setting(
        "auto",
        "Put an optimised BLAS in front of MLX's own on the Linux CPU.",
        group="Engine",
        reason="MLX's wheel for Linux links the reference BLAS, which is over ten times slower.",
    )
    wired_limit: bool = _setting(
        False,
        "Let MLX wire memory on Metal, so that the system cannot page it out.",
        group="Engine",
        reason="Wiring most of the memory has ended in kernel panics for others.",
    )
    max_tokens: int = _setting(
        0,
        "Tokens of an answer at most where the request does not say. "
        "0: to the end of the context window.",
        group="Answers",
        reason="An answer that is cut without being asked for looks like a wrong answer.",
        metavar="TOKENS",
        ge=0,
        le=2**24,
    )
    otlp_endpoint: str = _setting(
        "",
        "The collector that traces and metrics are sent to, as the base URL of OTLP over HTTP, "
        "for example http://localhost:4318. Empty: OTEL_EXPORTER_OTLP_ENDPOINT; without either "
        "nothing is sent.",
        group="Telemetry",
        reason="What a server measures stays with it until you decide otherwise.",
        metavar="URL",
    )
    metrics_api_key: SecretStr | None = _setting(
        None,
        "The key that readers of /metrics and /v1/metrics must send as a bearer token; also read "
        "from METRICS_API_KEY. Unset: clients on this machine alone may read them.",
        group="Telemetry",
        reason="Figures say who works when and on what; a collector beside the server needs no key.",
        flag=False,
    )
    vllm_names: bool = _setting(
        False,
        "Add the figures to /metrics a second time, under the names that vLLM's boards use.",
        group="Telemetry",
        reason="Only boards and gateways made for vLLM need them.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info",
        "The least important messages to log.",
        group="Logs",
        reason="What changes the state of the server, and what went wrong.",
    )
    log_format: Literal["auto", "json", "console"] = _setting(
        "auto",
        "How log lines look. auto: console on a terminal, JSON elsewhere.",
        group="Logs",
        reason="People read terminals, programs read files.",
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

    @field_validator("cache_dir")
    @classmethod
    def _expand_home(cls, value: Path) -> Path:
        try:
            return value.expanduser()
        except RuntimeError:
            raise ValueError("should not use ~: this user has no home directory") from None

    @field_validator("served_model_name")
    @classmethod
    def _check_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not name or len(name) > _LONGEST_NAME or not name.isprintable() or " " in name:
                raise ValueError(
                    f"should be names of 1 to {_LONGEST_NAME} printable characters without spaces"
                )
        if len(set(value)) < len(value):
            raise ValueError("should name each name once")
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _check_endpoint(cls, value: str) -> str:
        parts = urlsplit(value)  # raises ValueError in words of its own
        if value and (parts.scheme not in {"http", "https"} or not parts.hostname):
            raise ValueError("should be a URL such as http://localhost:4318")
        return value

    @field_validator("api_key", "metrics_api_key")
    @classmethod
    def _check_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            key = value.get_secret_value()
            if not key or not key.isascii() or not key.isprintable() or key != key.strip():
                raise ValueError("should be printable ASCII without spaces around it")
        return value

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
