"""An error as an answer: its status, its JSON, and the headers that go with it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from flask import Response

from .json_text import error_json

if TYPE_CHECKING:
    from ..resilience.errors import PharosError

__all__ = ["error_headers", "error_response"]

_UNAUTHORIZED = 401


def error_headers(error: PharosError) -> list[tuple[str, str]]:
    """Return the headers of an answer that tells an error."""
    headers = [("Content-Type", "application/json")]
    if error.retry_after is not None:
        headers.append(("Retry-After", str(max(1, math.ceil(error.retry_after)))))
    if error.status == _UNAUTHORIZED:
        headers.append(("WWW-Authenticate", "Bearer"))
    return headers


def error_response(error: PharosError) -> Response:
    """Return the answer of a route that raised an error."""
    return Response(error_json(error), status=error.status, headers=error_headers(error))
