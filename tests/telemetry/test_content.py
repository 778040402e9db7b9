"""What is kept of prompts and answers where the operator opted in: as the conventions have it, bounded."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from mlx_pharos.telemetry.content import (
    CAPTURE_VARIABLE,
    CONTENT_LIMIT,
    MESSAGE_COST,
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


@pytest.mark.parametrize("text", ["", "ab", "\x01" * 100_000, "\N{GRINNING FACE}" * 100_000])
@pytest.mark.parametrize("count", [1, 10_000])
def test_messages_count_also_where_they_say_nothing(text: str, count: int) -> None:
    """Neither many messages nor many choices, nor characters that JSON writes with six, make a batch of
    spans that one export cannot hold; and what waits in the queue is no larger than its text.
    """
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    content = Content((("user", "".join(text)) for _ in range(count)), choices=count)
    for number in range(2 * CONTENT_LIMIT):
        content.gain(number % count, text[:1] or "ab")
    for choice in range(count):
        content.gain(choice, "", "length")
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    width = 4 if "\N{GRINNING FACE}" in text else 1
    assert held < width * 2 * (CONTENT_LIMIT + MESSAGE_COST) + 4096
    asked, told = content.input_messages(), content.output_messages()
    assert 0 < len(json.loads(asked)) <= 1 + CONTENT_LIMIT // MESSAGE_COST
    assert 0 < len(json.loads(told)) <= 1 + CONTENT_LIMIT // MESSAGE_COST
    assert 256 * (len(asked.encode()) + len(told.encode())) < 62 * 2**20


@pytest.mark.parametrize("length", [CONTENT_LIMIT // 2, CONTENT_LIMIT - MESSAGE_COST])
def test_every_answer_that_is_cut_has_a_mark(length: int) -> None:
    """The one that came to the limit, and those whose text came when there was no room left."""
    content = Content([("user", "x")], choices=2)
    content.gain(0, "a" * length)
    content.gain(1, "b" * CONTENT_LIMIT, "stop")
    texts = [each["parts"][0]["content"] for each in json.loads(content.output_messages())]
    assert [False, True] == [each.endswith("…") for each in texts]
    content.gain(0, "a")
    texts = [each["parts"][0]["content"] for each in json.loads(content.output_messages())]
    assert [True, True] == [each.endswith("…") for each in texts]


def test_messages_that_were_left_out_leave_a_mark() -> None:
    """Where more followed the last message that is kept, it says so; what fits is as it was."""
    full = [("user", "a" * (CONTENT_LIMIT // 2 - MESSAGE_COST))] * 2
    assert "…" not in Content(full, choices=1).input_messages()
    cut = json.loads(Content([*full, ("user", "c")], choices=1).input_messages())
    assert [False, True] == [each["parts"][0]["content"].endswith("a…") for each in cut]


def test_half_a_character_is_no_obstacle() -> None:
    """Text that UTF-8 cannot have is replaced, so that the span can be sent."""
    content = Content([("user", "\ud83d")], choices=1)
    content.gain(0, "\udfff", "length")
    for text in (content.input_messages(), content.output_messages()):
        assert text.encode()
