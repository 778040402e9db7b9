"""Rates per key, as a client sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlx_pharos.resilience.api_keys import ApiKey
from support.client import CHAT, chat_body

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ONE, TWO = {"Authorization": "Bearer first"}, {"Authorization": "Bearer second"}
KEYS = (ApiKey.of("one", "first"), ApiKey.of("two", "second"))


def test_a_key_that_sends_too_much_is_told_when_to_come_back(
    tiny_model: Path, serving: Callable[..., Any]
) -> None:
    """As OpenAI does, with the headers that its clients read; other keys go on."""
    with serving(tiny_model, api_keys=KEYS, requests_per_minute=2) as server:
        first = server.post(CHAT, chat_body(), **ONE)
        assert (200, "2", "1") == (
            first.status,
            first.headers["x-ratelimit-limit-requests"],
            first.headers["x-ratelimit-remaining-requests"],
        )
        assert first.headers["x-ratelimit-reset-requests"].endswith("s")
        assert 200 == server.post(CHAT, chat_body(stream=True), **ONE).status
        refused = server.post(CHAT, b"{", **ONE)
        assert (429, "rate_limit_exceeded") == (refused.status, refused.error["code"])
        assert 1 <= int(refused.headers["Retry-After"]) <= 30
        assert "0" == refused.headers["x-ratelimit-remaining-requests"]
        assert 200 == server.post(CHAT, chat_body(), **TWO).status
        assert 200 == server.request("GET", "/v1/models", headers=ONE).status


def test_tokens_are_charged_by_what_was_used(tiny_model: Path, serving: Callable[..., Any]) -> None:
    """max_tokens is charged at first, the answer's own tokens in the end."""
    with serving(tiny_model, tokens_per_minute=5000) as server:
        body = chat_body(max_tokens=4000, stop=["e", "a", "i", " "])
        used = 0
        for stream in (False, True):
            answer = server.post(CHAT, body | {"stream": stream})
            assert 200 == answer.status
            if not stream:
                used = answer.json["usage"]["total_tokens"]
        left = int(server.post(CHAT, b"{").headers["x-ratelimit-remaining-tokens"])
        # A little has come back meanwhile.
        assert 5000 - 2 * used <= left <= 5000 - 2 * used + 1000
        refused = server.post(CHAT, chat_body(max_tokens=5000))
        assert (429, "rate_limit_exceeded") == (refused.status, refused.error["code"])
