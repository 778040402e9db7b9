"""The settings of the network: addresses, keys, connections, what a client may send."""

from __future__ import annotations

import re
from pathlib import Path  # noqa: TC003 - pydantic reads it
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, SecretStr, field_validator
from pydantic_settings import NoDecode

from .field import check_secret, expand_home, parse_size, setting, split_names

__all__ = ["NetworkSettings"]

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s,@?#]+", re.IGNORECASE)
_HOST = re.compile(r"\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*|[0-9a-f:]+", re.IGNORECASE)


class NetworkSettings(BaseModel):
    """The group "Network"."""

    host: str = setting(
        "127.0.0.1",
        "The address to listen on.",
        group="Network",
        reason="Only programs on this machine can connect until you decide otherwise.",
        metavar="ADDRESS",
        min_length=1,
    )
    port: int = setting(
        8080,
        "The TCP port to listen on. 0: a free one, which the log names.",
        group="Network",
        reason="It needs no privileges, and mlx_lm.server uses it too.",
        metavar="PORT",
        ge=0,
        le=65535,
    )
    api_key: SecretStr | None = setting(
        None,
        "The key that clients of /v1 must send as a bearer token. Unset: none is asked for. "
        "There is no flag: other users of the machine can see the flags of a process.",
        group="Network",
        reason="On 127.0.0.1 a key protects little; set one before you change the host.",
        flag=False,
    )
    api_keys_file: Path | None = setting(
        None,
        "The file with the names and hashes of the keys that clients of /v1 may send; "
        "pharos keys writes it. They are good beside PHAROS_API_KEY.",
        group="Network",
        reason="One key for all is enough for one person; several can be told apart and withdrawn.",
        metavar="FILE",
    )
    allow_open_network: bool = setting(
        False,
        "Listen to a network although no key is asked for.",
        group="Network",
        reason="Whoever reaches the address could use the model; a firewall or a container's "
        "network may see to it that nobody can.",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_names)] = setting(
        (),
        "Names that clients may use for the server, separated by commas, beside localhost, the "
        "loopback addresses and --host; .example.org stands for all below it, * for all. "
        "Empty: on a loopback address no others, elsewhere all.",
        group="Network",
        reason="A web page can point a name of its own at 127.0.0.1 and have browsers ask there.",
        metavar="NAME[,NAME]",
    )
    allowed_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_names)] = setting(
        (),
        "Origins whose web pages may use the server from a browser, such as "
        "https://chat.example.org, separated by commas; * for all. Empty: the server's own alone.",
        group="Network",
        reason="Every page that somebody opens could use the model otherwise.",
        metavar="ORIGIN[,ORIGIN]",
    )
    ops_port: int | None = setting(
        None,
        "A second TCP port, for /livez, /readyz, /health, /metrics and /v1/metrics alone, with "
        "threads of its own. 0: a free one, which the log names. Unset: there is none.",
        group="Network",
        reason="Those routes are on the main port too; another one is for networks that differ.",
        metavar="PORT",
        ge=0,
        le=65535,
    )
    ops_host: str = setting(
        "127.0.0.1",
        "The address of the port for operations.",
        group="Network",
        reason="As for the host.",
        metavar="ADDRESS",
        min_length=1,
    )
    threads: int = setting(
        0,
        "Threads that answer requests. 0: enough for every request that can be admitted, "
        "and some for refusals and health checks.",
        group="Network",
        reason="A running request holds a thread; with fewer, /livez would wait for streams.",
        metavar="N",
        ge=0,
        le=8192,
    )
    connection_limit: int = setting(
        0,
        "Connections open at the same time at most, idle ones included. "
        "0: one per thread, and 128 for idle ones.",
        group="Network",
        reason="At the limit the server is deaf, so it must lie above the threads.",
        metavar="N",
        ge=0,
        le=65536,
    )
    max_body_bytes: Annotated[int, BeforeValidator(parse_size)] = setting(
        10 * 1024**2,
        "The largest request body, for example 10MiB. A larger one is answered with 413.",
        group="Network",
        reason="It holds a prompt of over two million tokens; more is a mistake or an attack.",
        metavar="SIZE",
        ge=1024,
        le=2**30,
    )
    keep_alive: float = setting(
        10.0,
        "Seconds without a token after which a stream gets a comment.",
        group="Network",
        reason="Proxies drop a silent connection after 30 to 60 seconds.",
        metavar="SECONDS",
        gt=0,
        le=3600,
    )
    shutdown_grace: float = setting(
        25.0,
        "Seconds that running requests get to finish when the server is told to stop.",
        group="Network",
        reason="Kubernetes kills 30 seconds after it asks.",
        metavar="SECONDS",
        ge=0,
        le=86400,
    )

    @field_validator("allowed_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError("should be origins such as https://chat.example.org, without path")
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name != "*" and not _HOST.fullmatch(name):
                raise ValueError("should be names such as models.example.org, without port")
        return value

    _check_api_key = field_validator("api_key")(check_secret)
    _expand_keys_file = field_validator("api_keys_file")(expand_home)
