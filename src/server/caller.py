"""Who a request is of, as its head tells: found at the gate, used by the routes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .auth import ANONYMOUS

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from ..resilience.reservation import Reservation

__all__ = ["Caller", "caller_of"]

_KEY: Final = "pharos.caller"


@dataclass(slots=True)
class Caller:
    """Belongs to the thread that answers the request."""

    tenant: int = ANONYMOUS
    """Whose key it has; see :func:`.auth.check_api_key`."""
    admitted: bool = False
    """Whether it was counted by the rates, whose headers its answer then has."""
    reservation: Reservation | None = None
    """The place that is kept for it till it is submitted, or refused."""

    def end_reservation(self) -> None:
        """Give back the place that is kept for it, if there is one."""
        if self.reservation is not None:
            self.reservation.end()


def caller_of(environ: WSGIEnvironment) -> Caller:
    """Return the caller of a request, the same one each time."""
    found: Caller = environ.setdefault(_KEY, Caller())
    return found
