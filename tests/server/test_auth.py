"""The API key: needed under /v1 when set, never for probes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from mlx_pharos.resilience.api_keys import ApiKey
from mlx_pharos.resilience.errors import AuthenticationError
from mlx_pharos.server.auth import check_api_key
from support.client import CHAT, chat_body
from support.raw_http import exchange, request_bytes, statuses

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


KEYS = (ApiKey.of("one", "secret"), ApiKey.of("two", "other"))


def test_each_key_is_a_tenant_of_its_own_and_is_nowhere_in_plain_text() -> None:
    """The tenant is the key's place; what the server holds shows the name alone."""
    assert [1, 2] == [check_api_key(f"Bearer {key}", KEYS) for key in ("secret", "other")]
    assert "secret" not in repr(KEYS)


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic c2VjcmV0", "secret", "Bearer wrong", "Bearer secre"]
)
def test_a_missing_or_wrong_key_is_refused(header: str) -> None:
    """Also one that is nearly right."""
    with pytest.raises(AuthenticationError):
        check_api_key(header, KEYS)


@pytest.mark.parametrize("header", ["Bearer sécret", "bearer sécret", "Bearer  sécret "])
def test_the_right_key_passes(header: str) -> None:
    """The scheme has no case, and header bytes beyond ASCII arrive as Latin-1."""
    assert 1 == check_api_key(header.encode().decode("latin-1"), (ApiKey.of("one", "sécret"),))


def test_without_a_key_nothing_is_checked() -> None:
    """Clients that always send some key are served."""
    assert 0 == check_api_key("Bearer anything", ())


def test_the_api_needs_the_key_and_the_probes_do_not(
    tiny_model: Path, serving: Callable[..., Any]
) -> None:
    """A 401 comes before the body is judged, with the header that HTTP asks for."""
    with serving(tiny_model, api_keys=KEYS) as server:
        for answer in (server.chat(), server.post(CHAT, b"{"), server.get("/v1/models")):
            assert (401, "invalid_api_key") == (answer.status, answer.error["code"])
            assert "Bearer" == answer.headers["WWW-Authenticate"]
        for path in ("/livez", "/readyz", "/health", "/openapi.json"):
            assert 200 == server.get(path).status
        given = {"Authorization": "Bearer secret"}
        assert 200 == server.post(CHAT, chat_body(), **given).status
        document = server.get("/openapi.json").json
        assert "401" in document["paths"][CHAT]["post"]["responses"]
        assert [{"key": []}] == document["paths"][CHAT]["post"]["security"]


def test_no_spelling_of_a_path_gets_past_the_key(
    tiny_model: Path, serving: Callable[..., Any]
) -> None:
    """However a route is written, nobody without a key gets an answer from it."""
    spellings = (
        "/v1/models",
        "//v1/models",
        "///v1/models",
        "/v1//models",
        "/v1/models/",
        "/v1/models/tiny/",
        "/%76%31/models",
        "/v1%2Fmodels",
        "/%2fv1/models",
        "/./v1/models",
        "/metrics/../v1/models",
        "/V1/models",
        "/v1/models?x=/metrics",
        "http://localhost/v1/models",
        "http://localhost//v1/models",
    )
    headers = {"Host": "localhost", "Connection": "close"}
    with serving(tiny_model, api_keys=KEYS, port=0) as server:
        for target in spellings:
            got = statuses(exchange(server.port, request_bytes("GET", target, headers)))
            assert len(got) == 1, target
            assert got[0] in {308, 400, 401, 404}, (target, got)
            chat = target.replace("/models", "/chat/completions")
            body = json.dumps(chat_body()).encode()
            data = request_bytes("POST", chat, headers | {"Content-Type": "application/json"}, body)
            got = statuses(exchange(server.port, data))
            assert len(got) == 1, chat
            assert got[0] in {308, 400, 401, 404, 405}, (chat, got)
