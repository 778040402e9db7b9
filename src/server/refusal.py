"""Requests that the parser refuses: the application answers them, so all answers are told alike.

What could not be read of a request is as empty as WSGI allows; the error that
refused it comes in the environment, and the gate raises it before all else. So
an answer to four bytes of rubbish has its id, its span and its line in the log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from waitress.utilities import Error

from ..resilience.errors import (
    BodyTooLargeError,
    HeadersTooLargeError,
    InternalError,
    InvalidRequestError,
)
from ..telemetry.http import STARTED_AT
from .gate import REFUSAL
from .json_text import error_json
from .request_id import choose_request_id
from .task import Task

if TYPE_CHECKING:
    from typing import Any

    from ..resilience.errors import PharosError

__all__ = ["Refusal", "RefusalTask", "refusal_of"]


class Refusal(Error):  # noqa: N818 - waitress calls them so, and none is raised
    """One of our own errors as waitress carries it."""

    def __init__(self, error: PharosError) -> None:
        super().__init__(error.message)
        self.code = error.status
        self.error = error


class RefusalTask(Task):
    """Has the application answer a request that was refused, and closes the connection after it."""

    def execute(self) -> None:
        """Answer. The rest of what the client sends is no request."""
        request: Any = self.request
        request.headers["CONNECTION"] = "close"
        if isinstance(request.error, Refusal):
            super().execute()
        else:
            self._say_failed()

    def get_environment(self) -> dict[str, Any]:
        """Return the WSGI environment, which says why the request is refused."""
        request: Any = self.request
        environ: dict[str, Any] = super().get_environment()
        environ[REFUSAL] = request.error.error
        environ[STARTED_AT] = request.began_at
        return environ

    def _say_failed(self) -> None:
        """Say what the application could not: it has failed, and that has been recorded."""
        body = error_json(InternalError("The server failed unexpectedly. Its log has the details."))
        self.complete = True
        self.status = "500 Internal Server Error"
        self.response_headers = [
            ("Content-Type", "application/json"),
            ("X-Request-Id", choose_request_id()),
        ]
        self.content_length = len(body)
        self.write(body)


def refusal_of(found: Error) -> Refusal:
    """Return our error for one that waitress found in a request."""
    if isinstance(found, Refusal):
        return found
    match found.code:
        case 413:
            return Refusal(
                BodyTooLargeError(
                    "The request body is larger than this server accepts. "
                    "Send less text, or raise the server's body limit."
                )
            )
        case 431:
            message = "The request's headers are too large. Send fewer, or shorter."
            return Refusal(HeadersTooLargeError(message))
        case _:
            message = f"This is not a valid HTTP request: {_plain(found.body)}."
            return Refusal(InvalidRequestError(message))


def _plain(detail: str) -> str:
    """Return waitress' words without what they quote of the request."""
    return detail.partition('"')[0].strip() or "it cannot be parsed"
