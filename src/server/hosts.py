"""Under which names the server may be asked for, and by pages of which origins.

A browser sends what a page asks it to, from inside of the network that the
page's visitor is in. A page of a hostile site can point its own name at
127.0.0.1 (DNS rebinding): its requests then carry that name as their Host. Or
it can post to http://127.0.0.1 right away: its requests carry its Origin.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

from ..resilience.errors import HostForbiddenError, OriginForbiddenError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .options import ServerOptions

__all__ = ["ALL", "Hosts", "Origins", "hosts_and_origins"]

ALL = "*"
"""Allows every host, or every origin."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""The names that are asked for most, found without reading them as addresses."""
_PORT = re.compile(r":[0-9]*$")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class Hosts:
    """The names that a request's Host may have, whatever the port. Immutable.

    Args:
        bound: The address that the server listens on.
        allowed: Further names; one that begins with a dot stands for all below it.
    """

    def __init__(self, bound: str, allowed: Sequence[str]) -> None:
        # An address that a network reaches has names that are not known here. It asks for a key,
        # which no page can send; where it does not, see Origins.
        self.guessed = not (allowed or _is_loopback(bound))
        """Whether every name is taken because nobody said which are the server's."""
        self._everything = ALL in allowed or self.guessed
        self._names = {bound.lower(), *_LOOPBACK, *(name.lower() for name in allowed)} - {ALL}

    def check(self, header: str | None) -> None:
        """Raise :class:`HostForbiddenError` where the header names somebody else. Any thread."""
        if header is None or self._everything or self.knows(header):
            return
        message = (
            "The server does not go by the name in the header 'Host'. Use its address, or add the "
            "name to its setting allowed_hosts."
        )
        raise HostForbiddenError(message)

    def knows(self, header: str) -> bool:
        """Whether a header names this machine, the bound address or a name that was allowed one by one.

        Nobody else can have pointed such a name here, while "all" has those of hostile pages as
        well. Any thread.
        """
        name = _name(header)
        if name in self._names or _is_loopback(name):
            return True
        return any(each.startswith(".") and name.endswith(each) for each in self._names)


class Origins:
    """The origins whose pages may use the server: its own, and those that were allowed. Immutable.

    Args:
        allowed: Origins of others.
        names_are_known: False where any name might be one that a hostile page has pointed here,
            and nothing else keeps that page out; then its own origin is one of an address.
    """

    def __init__(self, allowed: Sequence[str], *, names_are_known: bool = True) -> None:
        self._names_are_known = names_are_known
        self._everything = ALL in allowed
        self._allowed = frozenset(origin.lower() for origin in allowed)

    def check(self, origin: str | None, host: str | None) -> None:
        """Raise :class:`OriginForbiddenError` for a page of another origin.

        Args:
            origin: The header of that name; programs that are no browsers send none.
            host: The header of that name.
        """
        if origin is None or self.allows(origin):
            return
        if _same_host(origin, host or "") and (self._names_are_known or _is_address(host or "")):
            return
        message = (
            "Web pages of this origin may not use the server. Its setting allowed_origins "
            "can allow them, or allowed_hosts where the name is the server's own."
        )
        raise OriginForbiddenError(message)

    def allows(self, origin: str) -> bool:
        """Whether pages of another origin may read the answers."""
        return self._everything or origin.lower() in self._allowed


def hosts_and_origins(options: ServerOptions) -> tuple[Hosts, Origins]:
    """Return by what names and from which pages the API may be used."""
    hosts = Hosts(options.host, options.allowed_hosts)
    known = bool(options.api_keys) or not hosts.guessed
    return hosts, Origins(options.allowed_origins, names_are_known=known)


def _same_host(origin: str, host: str) -> bool:
    """Whether a page came from here. A proxy may have taken TLS off, so the scheme is not asked."""
    scheme, separator, place = origin.lower().partition("://")
    if not separator:
        return False
    default = _DEFAULT_PORTS.get(scheme, "")
    return place.removesuffix(default) == host.strip().lower().removesuffix(default)


def _name(header: str) -> str:
    """Return a Host without its port."""
    return _PORT.sub("", header.strip().lower()).strip("[]").removesuffix(".")


def _is_address(host: str) -> bool:
    """Whether a Host is an address, or this machine: nobody can point those elsewhere."""
    name = _name(host)
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return _is_loopback(name)
    return True


def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
