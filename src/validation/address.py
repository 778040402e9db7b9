"""Whether an address can be listened on, and which port nearby could be instead.

A host can be several addresses: ``localhost`` is one of IPv4 and one of IPv6. The server listens
on all of them, so all are tried, together and as the listener binds them. Nothing is accepted,
and every socket is closed before a function returns.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["find_free_port", "is_loopback", "listener_beside", "overlap", "try_to_listen"]

_LAST_PORT = 65535
_NEARBY = 100
"""Ports that are tried on each side before none is proposed."""
_UNPRIVILEGED = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
_USUAL_UNPRIVILEGED = 1024
_TWINS = {"127.0.0.1": "::1", "0.0.0.0": "::", "::1": "127.0.0.1", "::": "0.0.0.0"}  # noqa: S104 - compared
"""The same place in the other family, where a client that says ``localhost`` may come instead."""

_Address = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]


def try_to_listen(host: str, port: int, *, prefix: str = "") -> None:
    """Listen on every address of the host for a moment; port 0 is any free one.

    Args:
        host: A name or an address.
        port: The port on each of its addresses.
        prefix: What stands before ``host`` and ``port`` in the names of the two settings.

    Raises:
        ValidationError: The host is not this machine's, the port is taken, or needs rights; the
            text proposes a port that is free.
    """
    try:
        failure = _failure(_addresses(host, port))
    except ValidationError as error:
        raise ValidationError(f"{prefix}host", error.problems[0].text) from None
    if failure is not None:
        subject, text = _problem(failure, host, port, flag=f"--{prefix}port".replace("_", "-"))
        raise ValidationError(prefix + subject, text)


def find_free_port(ports: Iterable[int], *, host: str = "127.0.0.1") -> int:
    """Return the first of the ports that every address of the host can be listened on.

    It is free at this moment; another program may take it before the caller does.

    Raises:
        ValidationError: None of them is.
    """
    tried = 0
    for port in ports:
        tried += 1
        if _failure(_addresses(host, port)) is None:
            return port
    raise ValidationError("port", f"none of {tried} ports of {host} is free; try other ones")


def overlap(one: str, other: str) -> bool:
    """Return whether two hosts share an address, so that one port cannot be listened on in both."""
    first, second = ({place[0] for _, place in _addresses(host, 0)} for host in (one, other))
    wild = {"0.0.0.0", "::"}  # noqa: S104 - compared
    return bool(first & second or first & wild or second & wild)


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches the host; False where it cannot be resolved."""
    try:
        addresses = _addresses(host, 0)
    except ValidationError:
        return False
    return all(_is_loopback(place[0]) for _, place in addresses)


def listener_beside(host: str, port: int) -> str:
    """Return the address of a program that has the same port in the other family, else nothing.

    It does not keep the server from listening, but a client that says ``localhost`` may reach it.
    """
    twin = _TWINS.get(host, "")
    if not twin or not port:
        return ""
    with contextlib.suppress(ValidationError):
        failure = _failure(_addresses(twin, port))
        if failure is not None and failure.errno == errno.EADDRINUSE:
            return _shown(twin, port)
    return ""


def _addresses(host: str, port: int) -> list[_Address]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        text = f"{host} is no name or address that this machine knows; use 127.0.0.1 or 0.0.0.0"
        raise ValidationError("host", text) from None
    unique = dict.fromkeys((family, place) for family, _, _, _, place in found)
    return [(family, place) for family, place in unique if isinstance(place[0], str)]


def _failure(addresses: Iterable[_Address]) -> OSError | None:
    """Return why the addresses cannot be listened on; None where it works as in the listener."""
    missing: OSError | None = None
    bound = 0
    with contextlib.ExitStack() as sockets:
        for family, place in addresses:
            try:
                probe = sockets.enter_context(socket.socket(family, socket.SOCK_STREAM))
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(place)
                # On some systems only this finds that somebody else listens.
                probe.listen(1)
            except OSError as error:
                # A name may have an address of a family that this machine has switched off.
                if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                    return error
                missing = error
                continue
            bound += 1
    return None if bound else missing


def _problem(error: OSError, host: str, port: int, *, flag: str) -> tuple[str, str]:
    where = _shown(host, port)
    if error.errno == errno.EADDRINUSE:
        mend = _proposal(host, port, flag) or f"choose another with {flag}"
        return (
            "port",
            f"{where} is in use by another program, or by a Pharos that runs already; {mend}",
        )
    if error.errno in {errno.EACCES, errno.EPERM}:
        first = _first_unprivileged()
        other = f"choose one from {first} on with {flag}"
        mend = _proposal(host, max(first, 8080) - 1, flag) or other
        text = f"{where} needs privileges that this user lacks: ports below {first} are reserved"
        return "port", f"{text}; {mend}"
    if error.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
        return "host", f"{host} is not an address of this machine; use 127.0.0.1 or 0.0.0.0"
    return "host", f"{where} cannot be listened on: {error.strerror}; choose another"


def _proposal(host: str, port: int, flag: str) -> str:
    """Name a free port near another; empty where there is none."""
    above = range(port + 1, min(port + _NEARBY, _LAST_PORT) + 1)
    below = range(port - 1, max(port - _NEARBY, _first_unprivileged() - 1), -1)
    with contextlib.suppress(ValidationError):
        free = find_free_port([*above, *below], host=host)
        return f"{free} is free: {flag} {free}"
    return ""


def _first_unprivileged() -> int:
    try:
        return int(_UNPRIVILEGED.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return _USUAL_UNPRIVILEGED


def _is_loopback(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_loopback


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
