"""An error as an answer: its status, its JSON, and the headers that go with it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .json_text import error_json
from .reply import Reply

if TYPE_CHECKING:
    from ..resilience.errors import PharosError

__all__ = ["error_reply"]

_UNAUTHORIZED = 401


def error_reply(error: PharosError) -> Reply:
    """Return the answer that tells an error."""
    headers = []
    if error.retry_after is not None:
        headers.append(("Retry-After", str(max(1, math.ceil(error.retry_after)))))
    if error.status == _UNAUTHORIZED:
        headers.append(("WWW-Authenticate", "Bearer"))
    return Reply(error_json(error), status=error.status, headers=tuple(headers))
