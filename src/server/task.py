"""One answer as waitress writes it, with its head and the first of its body in one piece."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from waitress.task import WSGITask

from ..telemetry.http import AFTERWARDS, STARTED_AT
from .caller import CALLER, Caller
from .operation import is_operation

if TYPE_CHECKING:
    from .output import Output

__all__ = ["Task"]


class Task(WSGITask):
    """Runs the application and queues what it says.

    waitress writes the head for itself: a second packet, and for the client a
    second time to wake up, which costs more than a small answer.
    """

    def get_environment(self) -> dict[str, Any]:
        """Return the WSGI environment."""
        environ: dict[str, Any] = super().get_environment()
        request: Any = self.request
        request.caller = environ[CALLER] = request.caller or Caller()
        if request.read_at is not None:
            environ[STARTED_AT] = request.read_at
        output: Output = self.channel  # type: ignore[assignment] # the stubs know waitress' own
        if output.chores is not None and not is_operation(request.command, request.path):
            # A refusal: those of the same burst are answered before this one is recorded.
            environ[AFTERWARDS] = output.chores
        return environ

    def write(self, data: bytes) -> None:
        """Queue bytes of the body; the first time with the head in front of them."""
        if self.wrote_header:
            super().write(data)
            return
        output: Output = self.channel  # type: ignore[assignment] # as above
        with output.gathering():
            super().write(data)
