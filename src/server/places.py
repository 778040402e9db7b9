"""Which of the generations that the I/O loop has read have a place, by their heads alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..resilience.errors import AuthenticationError, HostForbiddenError, OriginForbiddenError
from .auth import check_api_key, sharer
from .gate import GENERATION_PATHS
from .hosts import hosts_and_origins

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..resilience.rates import Rates
    from ..resilience.reservation import Reservation
    from .options import ServerOptions

__all__ = ["PLACES", "Places"]

PLACES: Final = "pharos.places"
"""The application's extension that has them."""


class Places:
    """Keeps them. In the I/O thread alone.

    Args:
        options: Fixed for the server's life.
        reserve: Keeps a place for a tenant; None where there is none. Must not wait.
        rates: What each client may ask for.
    """

    def __init__(
        self,
        options: ServerOptions,
        reserve: Callable[[int], Reservation | None],
        rates: Rates,
    ) -> None:
        self._keys = options.api_keys
        self._hosts, self._origins = hosts_and_origins(options)
        self._reserve = reserve
        self._rates = rates

    def keep(self, request: Any) -> None:  # noqa: ANN401 - waitress' own
        """Note on a request that has been read its place, or that it is turned away.

        One that wants none, or that the gate will refuse for another reason, gets neither.
        """
        if request.error or request.command != "POST" or request.path not in GENERATION_PATHS:
            return
        headers: dict[str, str] = request.headers
        try:
            self._hosts.check(headers.get("HOST"))
            self._origins.check(headers.get("ORIGIN"), headers.get("HOST"))
            tenant = check_api_key(headers.get("AUTHORIZATION", ""), self._keys)
        except (HostForbiddenError, OriginForbiddenError, AuthenticationError):
            return
        if self._rates.is_spent(tenant):
            return
        request.reservation = self._reserve(sharer(tenant, self._keys))
        request.turned_away = request.reservation is None
