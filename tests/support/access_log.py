"""The access log of a server that runs in the test's own process."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from typing import TYPE_CHECKING

from mlx_pharos.telemetry.log import configure_log

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

__all__ = ["AccessLog", "access_log"]


class AccessLog:
    """What was logged so far."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    def lines(self) -> list[dict[str, Any]]:
        """Return the access lines, in their order."""
        parsed = map(json.loads, self.stream.getvalue().splitlines())
        return [line for line in parsed if line["logger"] == "mlx_pharos.requests"]

    def of(self, request_id: str) -> list[dict[str, Any]]:
        """Return the lines of a request: one, if all is well."""
        return [line for line in self.lines() if line.get("request_id") == request_id]


@contextlib.contextmanager
def access_log() -> Iterator[AccessLog]:
    """Collect the log as JSON; afterwards it goes where it went before."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    log = AccessLog()
    configure_log(style="json", stream=log.stream)
    try:
        yield log
    finally:
        root.handlers, root.level = before
