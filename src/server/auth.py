"""The API keys of clients: who asks, told by ``Authorization: Bearer``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..resilience.api_keys import find_key
from ..resilience.errors import AuthenticationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..resilience.api_keys import ApiKey

__all__ = ["ANONYMOUS", "check_api_key", "sharer"]

ANONYMOUS = 0
"""The tenant of everybody where no keys are asked for."""


def check_api_key(authorization: str, keys: Sequence[ApiKey]) -> int:
    """Check the ``Authorization`` header of a request, and return whose it is.

    Args:
        authorization: The header's value; empty where there is none.
        keys: Those that are accepted; none switches the check off.

    Returns:
        The tenant: 1 for the first key, 2 for the second, :data:`ANONYMOUS` without keys.

    Raises:
        AuthenticationError: The key is missing or not one of them.
    """
    if not keys:
        return ANONYMOUS
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "bearer" or not credentials.strip():
        message = "The API key is missing. Send the header 'Authorization: Bearer <key>'."
        raise AuthenticationError(message)
    place = find_key(keys, credentials.strip().encode("latin-1", "replace"))
    if place is None:
        message = "The API key is wrong."
        raise AuthenticationError(message)
    return place + 1


def sharer(tenant: int, keys: Sequence[ApiKey]) -> int:
    """Return as whom a tenant shares the places; a single key is everybody's, and may fill them."""
    return tenant if len(keys) > 1 else ANONYMOUS
