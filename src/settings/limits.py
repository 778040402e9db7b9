"""The settings of limits: how long a client, a request and a connection may take."""

from __future__ import annotations

from pydantic import BaseModel

from .field import setting

__all__ = ["LimitSettings"]


class LimitSettings(BaseModel):
    """The group "Limits"."""

    requests_per_minute: int = setting(
        0,
        "Requests for answers that each key may send per minute; beyond them 429 and Retry-After. "
        "Without keys all clients together. 0: without limit.",
        group="Limits",
        reason="The queue is bounded and fair between keys already; a rate is a matter of policy.",
        metavar="N",
        ge=0,
        le=10**7,
    )
    tokens_per_minute: int = setting(
        0,
        "Tokens of prompts and answers that each key may use per minute; beyond them 429 and "
        "Retry-After. Without keys all clients together. 0: without limit.",
        group="Limits",
        reason="As for requests; tokens are what the machine works for.",
        metavar="TOKENS",
        ge=0,
        le=10**9,
    )
    request_timeout: float = setting(
        3600.0,
        "Seconds for a whole answer; then it ends with the error deadline_exceeded. A client can "
        "ask for less with the header X-Request-Timeout. 0: without end.",
        group="Limits",
        reason="Beyond an hour hardly anybody still waits, and the place is wanted.",
        metavar="SECONDS",
        ge=0,
        le=86400,
    )
    queue_timeout: float = setting(
        120.0,
        "Seconds that a request may wait for its turn; then it is answered with 503 and "
        "Retry-After. 0: without end.",
        group="Limits",
        reason="Who is told to come back can go elsewhere; who waits in silence cannot.",
        metavar="SECONDS",
        ge=0,
        le=86400,
    )
    header_timeout: float = setting(
        30.0,
        "Seconds that a client has to send the headers of a request, from their first byte.",
        group="Limits",
        reason="Headers fit into a few packets; who takes longer is broken or hostile.",
        metavar="SECONDS",
        gt=0,
        le=3600,
    )
    body_timeout: float = setting(
        300.0,
        "Seconds that a client has to send a whole request, from its first byte.",
        group="Limits",
        reason="10 MiB at 35 kB/s, which is a slow telephone.",
        metavar="SECONDS",
        gt=0,
        le=86400,
    )
    idle_timeout: float = setting(
        120.0,
        "Seconds that a connection may stay open without a request, and that a client may read "
        "nothing of an answer that waits for it.",
        group="Limits",
        reason="Clients reuse a connection within seconds; a proxy's pool holds it for a minute.",
        metavar="SECONDS",
        ge=1,
        le=86400,
    )
