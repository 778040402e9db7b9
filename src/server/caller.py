"""Who a request is of, as its head tells: found where it is read or at the gate, used by the routes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .auth import ANONYMOUS

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from ..resilience.errors import PharosError
    from ..resilience.reservation import Reservation

__all__ = ["CALLER", "Caller", "caller_of"]

CALLER: Final = "pharos.caller"
"""Where a request's environment has its caller, if that was looked at when the request was read."""


@dataclass(slots=True)
class Caller:
    """Belongs to whichever thread has the request."""

    tenant: int = ANONYMOUS
    """Whose key it has; see :func:`.auth.check_api_key`."""
    admitted: bool = False
    """Whether it was counted by the rates, whose headers its answer then has."""
    reservation: Reservation | None = None
    """The place that is kept for it till it is submitted, or refused."""
    refusal: PharosError | None = None
    """Why it has none."""

    def end_reservation(self) -> None:
        """Give back the place that is kept for it, if there is one."""
        if self.reservation is not None:
            self.reservation.end()


def caller_of(environ: WSGIEnvironment) -> Caller:
    """Return the caller of a request, the same one each time."""
    found: Caller | None = environ.get(CALLER)
    if found is None:
        found = environ[CALLER] = Caller()
    return found
