"""The API key: one for the whole server, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac

from ..resilience.errors import AuthenticationError

__all__ = ["check_api_key"]


def check_api_key(authorization: str, api_key: str) -> None:
    """Check the ``Authorization`` header of a request.

    Args:
        authorization: The header's value; empty where there is none.
        api_key: The key that is wanted; empty switches the check off.

    Raises:
        AuthenticationError: The key is missing or another one.
    """
    if not api_key:
        return
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "bearer" or not credentials.strip():
        message = "The API key is missing. Send the header 'Authorization: Bearer <key>'."
        raise AuthenticationError(message)
    # Digests have one length, so the comparison says nothing about the key's.
    given = hashlib.sha256(credentials.strip().encode("latin-1", "replace")).digest()
    wanted = hashlib.sha256(api_key.encode()).digest()
    if not hmac.compare_digest(given, wanted):
        message = "The API key is wrong."
        raise AuthenticationError(message)
