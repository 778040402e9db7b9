"""The API key: needed under /v1 when set, never for probes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mlx_pharos.resilience.api_keys import ApiKey
from mlx_pharos.resilience.errors import AuthenticationError
from mlx_pharos.server.auth import check_api_key
from support.client import CHAT, chat_body

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
