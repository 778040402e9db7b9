"""Which of the generations that the I/O loop has read have a place, by their heads alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..resilience.errors import AuthenticationError, HostForbiddenError, OriginForbiddenError
from .auth import check_api_key
from .caller import Caller
from .gate import GENERATION_PATHS
from .hosts import hosts_and_origins

if TYPE_CHECKING:
    from .admittance import Admittance
    from .options import ServerOptions

__all__ = ["PLACES", "Places"]

PLACES: Final = "pharos.places"
"""The application's extension that has them."""


class Places:
    """Keeps them. In the I/O thread alone."""

    def __init__(self, options: ServerOptions, admittance: Admittance) -> None:
        """Keep them for those whom ``admittance`` admits."""
        self._keys = options.api_keys
        self._hosts, self._origins = hosts_and_origins(options)
        self._admittance = admittance

    def keep(self, request: Any) -> None:  # noqa: ANN401 - waitress' own
        """Judge a request that has been read, and note its caller on it: with a place, or refused.

        One that wants none, or that the gate will refuse for another reason, is left as it is.
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
        request.caller = Caller(tenant)
        self._admittance.judge(request.caller)
