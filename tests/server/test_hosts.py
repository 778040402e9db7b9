"""Browsers: under which names the server may be asked for, and by whose pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mlx_pharos.resilience.api_keys import ApiKey
from mlx_pharos.resilience.errors import HostForbiddenError, OriginForbiddenError
from mlx_pharos.server.hosts import Hosts, Origins
from support.client import CHAT, chat_body, read_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.client import RunningServer

PAGE = "https://chat.example.org"
GOOD_HOSTS = [
    "localhost",
    "LOCALHOST:8080",
    "localhost.",
    "a.localhost",
    "127.0.0.1:1",
    "127.9.9.9",
    "[::1]:80",
]
BAD_HOSTS = [
    "evil.example",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "",
    "0.0.0.0",
    "a b",
]


@pytest.fixture(scope="module")
def cors(tiny_model: Path, serving: Callable[..., Any]) -> Iterator[RunningServer]:
    """A server that lets one origin in, and asks for a key."""
    keys = (ApiKey.of("one", "secret"),)
    with serving(tiny_model, ready=False, allowed_origins=(PAGE,), api_keys=keys) as running:
        yield running


@pytest.mark.parametrize("host", GOOD_HOSTS)
def test_a_loopback_server_goes_by_the_machines_own_names(host: str) -> None:
    """Whatever the port and the case."""
    Hosts("127.0.0.1", ()).check(host)


@pytest.mark.parametrize("host", BAD_HOSTS)
def test_a_name_that_was_pointed_here_is_refused(host: str) -> None:
    """Also one that only looks like the machine's own."""
    with pytest.raises(HostForbiddenError):
        Hosts("127.0.0.1", ()).check(host)


def test_further_names_are_allowed_by_name() -> None:
    """One with a dot in front stands for all below it; an open address has names unknown here."""
    hosts = Hosts("0.0.0.0", ("models.example.org", ".lan.example"))
    for good in ("models.example.org:443", "a.lan.example", "localhost", "0.0.0.0"):
        hosts.check(good)
    for bad in ("example.org", "lan.example.evil", "xmodels.example.org"):
        with pytest.raises(HostForbiddenError):
            hosts.check(bad)
    Hosts("0.0.0.0", ()).check("anything.example")
    Hosts("127.0.0.1", ("*",)).check("anything.example")


def test_a_name_is_known_where_it_was_allowed_by_itself() -> None:
    """Names that are taken because all are, guessed or by ``*``, are not known to be the server's."""
    for hosts in (Hosts("0.0.0.0", ()), Hosts("0.0.0.0", ("*",)), Hosts("127.0.0.1", ("*",))):
        hosts.check("evil.example")
        assert not hosts.knows("evil.example")
        assert not any(map(hosts.knows, ("", "*", "localhost.evil.example", "10.0.0.5")))
        assert all(map(hosts.knows, GOOD_HOSTS))
    hosts = Hosts("box", ("models.example.org", ".lan.example"))
    assert all(map(hosts.knows, ("box:80", "MODELS.example.org.", "a.lan.example", "localhost")))


def test_a_page_of_the_server_itself_is_no_stranger() -> None:
    """A proxy may have taken TLS off; the port counts."""
    origins = Origins(())
    origins.check(None, "localhost:8080")
    origins.check("http://localhost:8080", "localhost:8080")
    origins.check("https://models.example.org", "models.example.org")
    for other in ("http://localhost:3000", "null", "", "https://evil.example"):
        with pytest.raises(OriginForbiddenError):
            origins.check(other, "localhost:8080")


def test_a_page_whose_name_was_pointed_at_an_open_server_is_a_stranger() -> None:
    """Where no key and no name keeps it out, its Origin is its Host and still not the server's;
    an address cannot be pointed elsewhere.
    """
    origins = Origins((PAGE,), names_are_known=False)
    for same in ("10.0.0.5:8080", "[fe80::1]:8080", "localhost:8080"):
        origins.check(f"http://{same}", same)
    origins.check(PAGE, "10.0.0.5")
    origins.check(None, "evil.example")
    for name in ("evil.example:8080", "10.0.0.5.evil.example", ""):
        with pytest.raises(OriginForbiddenError):
            origins.check(f"http://{name}", name)


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        ({}, 403),
        ({"allowed_hosts": ("evil.example",)}, 200),
        ({"allowed_origins": ("http://evil.example",)}, 200),
        ({"api_keys": (ApiKey.of("one", "secret"),)}, 401),
    ],
)
def test_an_open_server_without_a_key_takes_no_name_for_its_own(
    tiny_model: Path, serving: Callable[..., Any], settings: dict[str, Any], status: int
) -> None:
    """A rebound page generates nothing, unless the operator knows the name; a key needs no such
    rule. Programs, which send no Origin, may use any name.
    """
    with serving(tiny_model, host="0.0.0.0", **settings) as open_server:
        headers = {"Host": "evil.example", "Origin": "http://evil.example"}
        answer = open_server.post(CHAT, chat_body(max_tokens=2), **headers)
        assert status == answer.status
        if not settings:
            assert 200 == open_server.post(CHAT, chat_body(), Host="gpu-box:8080").status


@pytest.mark.parametrize("path", ["/livez", "/v1/models", "/openapi.json", "/metrics", "/nowhere"])
def test_no_route_answers_to_a_foreign_host(server: RunningServer, path: str) -> None:
    """The refusal is JSON that says what to set, and comes before anything else is looked at."""
    answer = server.request("GET", path, headers={"Host": "evil.example"})

    assert (403, "host_forbidden") == (answer.status, answer.error["code"])
    assert "allowed_hosts" in answer.error["message"]


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://evil.example/livez", "localhost", 403),
        ("http://localhost@evil.example/livez", "localhost", 403),
        ("http:///livez", "localhost", 403),
        ("http://localhost/livez", "localhost", 200),
        ("http://127.0.0.1:80/livez", "evil.example", 200),
    ],
)
def test_a_host_in_the_target_is_the_one_that_counts(
    server: RunningServer, target: str, host: str, status: int
) -> None:
    """As RFC 9112 has it: the header then says nothing."""
    with server.connect() as connection:
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert str(status).encode() == read_answer(connection)[0].split()[1]


def test_a_foreign_page_generates_nothing(server: RunningServer) -> None:
    """Even with a body that needs no preflight, and nothing lets the page read the answer."""
    answer = server.post(CHAT, chat_body(), Origin="https://evil.example")

    assert (403, "origin_forbidden") == (answer.status, answer.error["code"])
    assert not [name for name in answer.headers if name.startswith("Access-Control")]
    preflight = server.request(
        "OPTIONS",
        CHAT,
        headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"},
    )
    assert 403 == preflight.status
    assert 200 == server.post(CHAT, chat_body(), Origin=server.listener.url).status


def test_an_allowed_page_gets_through_preflight_request_and_errors(cors: RunningServer) -> None:
    """The preflight has no key; the answers can be read by the page, errors too."""
    asked = "authorization, content-type, x-stainless-os"
    preflight = cors.request(
        "OPTIONS",
        CHAT,
        headers={
            "Origin": PAGE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": asked,
        },
    )
    assert (204, PAGE) == (preflight.status, preflight.headers["Access-Control-Allow-Origin"])
    assert asked == preflight.headers["Access-Control-Allow-Headers"]
    assert "OPTIONS, POST" == preflight.headers["Access-Control-Allow-Methods"]
    for answer in (
        cors.request(
            "GET", "/v1/models", headers={"Origin": PAGE, "Authorization": "Bearer secret"}
        ),
        cors.request("GET", "/v1/models", headers={"Origin": PAGE}),
        cors.post(CHAT, chat_body(), Origin=PAGE),
    ):
        assert PAGE == answer.headers["Access-Control-Allow-Origin"]
        assert "Origin" in answer.headers["Vary"]
    for unknown in ("https://chat.example.org:8443", "http://chat.example.org"):
        assert 403 == cors.request("GET", "/livez", headers={"Origin": unknown}).status


@pytest.mark.parametrize(
    ("path", "status", "methods"),
    [
        ("/v1/metrics", 204, "GET, HEAD"),
        ("/metrics", 204, "GET, HEAD"),
        ("/v1/models", 204, "GET, HEAD, OPTIONS"),
        ("/v1/nowhere", 404, None),
    ],
)
def test_a_preflight_tells_what_the_route_takes(
    cors: RunningServer, path: str, status: int, methods: str | None
) -> None:
    """Each route has its own methods, and one that does not exist has none."""
    headers = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    answer = cors.request("OPTIONS", path, headers=headers)
    told = answer.headers["Access-Control-Allow-Methods"]
    assert (status, methods) == (answer.status, told)


def test_without_an_origin_there_is_no_preflight(server: RunningServer) -> None:
    """What no page sends is a request like any other: here one whose method the route lacks."""
    headers = {"Access-Control-Request-Method": "GET"}
    answer = server.request("OPTIONS", "/v1/metrics", headers=headers)
    assert (405, "GET, HEAD") == (answer.status, answer.headers["Allow"])
