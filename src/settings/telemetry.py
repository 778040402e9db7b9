"""The settings of telemetry and of the log."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, SecretStr, field_validator

from .field import check_secret, setting

__all__ = ["TelemetrySettings"]


class TelemetrySettings(BaseModel):
    """The groups "Telemetry" and "Logs"."""

    otlp_endpoint: str = setting(
        "",
        "The collector that traces and metrics are sent to, as the base URL of OTLP over HTTP, "
        "for example http://localhost:4318. Empty: OTEL_EXPORTER_OTLP_ENDPOINT; without either "
        "nothing is sent.",
        group="Telemetry",
        reason="What a server measures stays with it until you decide otherwise.",
        metavar="URL",
    )
    metrics_api_key: SecretStr | None = setting(
        None,
        "The key that readers of /metrics and /v1/metrics must send as a bearer token; also read "
        "from METRICS_API_KEY, where PHAROS_METRICS_API_KEY is not set. Unset: clients on this machine alone may read them, by one of its "
        "own names or one in allowed_hosts.",
        group="Telemetry",
        reason="Figures say who works when and on what; a collector beside the server needs no key.",
        flag=False,
    )
    vllm_names: bool = setting(
        False,
        "Add the figures to /metrics a second time, under the names that vLLM's boards use.",
        group="Telemetry",
        reason="Only boards and gateways made for vLLM need them.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info",
        "The least important messages to log.",
        group="Logs",
        reason="What changes the state of the server, and what went wrong.",
    )
    log_format: Literal["auto", "json", "console"] = setting(
        "auto",
        "How log lines look. auto: console on a terminal, JSON elsewhere.",
        group="Logs",
        reason="People read terminals, programs read files.",
    )

    @field_validator("otlp_endpoint")
    @classmethod
    def _check_endpoint(cls, value: str) -> str:
        parts = urlsplit(value)  # raises ValueError in words of its own
        if value and (parts.scheme not in {"http", "https"} or not parts.hostname):
            raise ValueError("should be a URL such as http://localhost:4318")
        return value

    _check_metrics_key = field_validator("metrics_api_key")(check_secret)
