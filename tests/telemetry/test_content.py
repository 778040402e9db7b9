"""What is kept of prompts and answers where the operator opted in: as the conventions have it, bounded."""

from __future__ import annotations

import json

import pytest

from mlx_pharos.telemetry.content import (
    CAPTURE_VARIABLE,
    CONTENT_LIMIT,
    Content,
    capture_problem,
    captures_content,
)


@pytest.mark.parametrize(
    ("value", "captures", "wrong"),
    [
        ("", False, False),
        ("false", False, False),
        ("NO_CONTENT", False, False),
        ("true", True, False),
        (" True ", True, False),
        ("SPAN_ONLY", True, False),
        ("span_and_event", True, False),
        ("EVENT_ONLY", False, True),
        ("1", False, True),
    ],
)
def test_only_a_clear_yes_captures(
    value: str, captures: bool, wrong: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content is kept for the values that say so; what is no value at all is reported."""
    monkeypatch.setenv(CAPTURE_VARIABLE, value)
    assert (captures, wrong) == (captures_content(), bool(capture_problem()))


def test_messages_are_as_the_conventions_have_them() -> None:
    """Roles with their parts, and for each answer its finish reason once it has one."""
    content = Content([("system", "Be brief."), ("user", "Hi")], choices=2)
    content.gain(0, "Hel")
    content.gain(1, "Yo")
    content.gain(0, "lo", "stop")
    assert [
        {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
        {"role": "user", "parts": [{"type": "text", "content": "Hi"}]},
    ] == json.loads(content.input_messages())
    assert [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": "Hello"}],
            "finish_reason": "stop",
        },
        {"role": "assistant", "parts": [{"type": "text", "content": "Yo"}]},
    ] == json.loads(content.output_messages())


def test_what_is_kept_is_bounded() -> None:
    """Ever so long prompts and answers are cut, visibly, to the same length for a request."""
    content = Content([("user", "p" * 100_000)] * 50, choices=3)
    for _ in range(100):
        for choice in range(3):
            content.gain(choice, "a" * 1000)
    asked, told = content.input_messages(), content.output_messages()
    assert CONTENT_LIMIT == asked.count("p" * 64) * 64
    assert told.count("a" * 1000) == CONTENT_LIMIT // 1000
    for text in (asked, told):
        assert "…" in text
        assert len(text) < CONTENT_LIMIT + 1000


def test_half_a_character_is_no_obstacle() -> None:
    """Text that UTF-8 cannot have is replaced, so that the span can be sent."""
    content = Content([("user", "\ud83d")], choices=1)
    content.gain(0, "\udfff", "length")
    for text in (content.input_messages(), content.output_messages()):
        assert text.encode()
