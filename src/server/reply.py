"""A whole answer, made before any of it is sent."""

from __future__ import annotations

from typing import NamedTuple

from flask import Response

__all__ = ["Reply", "flask_response"]


class Reply(NamedTuple):
    """The answer of a route or a refusal, whoever sends it."""

    body: bytes
    content_type: str = "application/json"
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    """Those that are not said by the other fields."""


def flask_response(reply: Reply) -> Response:
    """Return it as Flask's views do."""
    response = Response(reply.body, reply.status, content_type=reply.content_type)
    response.headers.extend(reply.headers)
    return response
