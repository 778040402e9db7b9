"""Bodies that are small on the wire and would be large in memory."""

from __future__ import annotations

import json
import resource
import sys
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

from mlx_pharos.engine.protocol import TokenPrompt
from mlx_pharos.resilience.errors import InvalidRequestError
from mlx_pharos.server.families import ChatFamily, CompletionFamily
from mlx_pharos.server.json_body import parse_json_object
from mlx_pharos.server.options import RequestDefaults
from support.client import CHAT, chat_body

if TYPE_CHECKING:
    from support.client import RunningServer

USER = {"role": "user", "content": "Hello"}
MANY = 100_000
LIMIT = 10 * 1024 * 1024


def filled(start: bytes, item: bytes, end: bytes) -> bytes:
    """Return a body of just under 10 MiB that repeats an item, with its number for ``%d``."""
    if b"%d" not in item:
        return start + b",".join([item] * ((LIMIT - 200) // (len(item) + 1))) + end
    return start + b",".join(item % number for number in range(900_000))[: LIMIT - 200] + end


BODIES = {
    "content": (b'{"model":"tiny","messages":[{"role":"user","content":[', b"0", b"]}]}"),
    "messages of numbers": (b'{"model":"tiny","messages":[', b"0", b"]}"),
    "messages of objects": (b'{"model":"tiny","messages":[', b"{}", b"]}"),
    "messages of arrays": (b'{"model":"tiny","messages":[', b"[]", b"]}"),
    "messages of strings": (b'{"model":"tiny","messages":[', b'"ab"', b"]}"),
    "unknown keys": (b'{"model":"tiny",', b'"k%d":1', b"}"),
    "metadata": (b'{"model":"tiny","metadata":{', b'"k%d":1', b"}}"),
    "logit_bias": (b'{"model":"tiny","logit_bias":{', b'"k%d":1', b"}}"),
    "surrogate": (b'{"model":"tiny","stop":["\\ud83d\\ude00",', b"0", b"]}"),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_ten_megabytes_of_garbage_are_a_cheap_400(
    server: RunningServer, body: tuple[bytes, bytes, bytes]
) -> None:
    """The server's memory grows by little more than the numbers in the body take."""
    data = filled(*body)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = server.post(CHAT, data)
    unit = 1 if sys.platform == "darwin" else 1024
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit

    assert 400 == answer.status
    assert len(answer.error["message"]) < 300
    assert grown < 200e6


WRONG: list[dict[str, Any]] = [
    {"messages": [0] * MANY},
    {"messages": [{}] * MANY},
    {"messages": [[]] * MANY},
    {"messages": [USER | {"x": 1}] * MANY},
    {"messages": [{"role": "user", "content": [0] * MANY}]},
    {"messages": [USER], "stop": [0] * MANY},
    {"messages": [USER], "tools": [0] * MANY},
    {"messages": [USER], "modalities": [0] * MANY},
]


@pytest.mark.parametrize("fields", WRONG, ids=lambda fields: str(fields)[:60])
def test_a_list_ends_at_its_first_wrong_item(fields: dict[str, Any]) -> None:
    """What is collected about a wrong list does not grow with it."""
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequestError):
            ChatFamily().read({"model": "m", **fields}, RequestDefaults())
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("prompt", [["a", *[0] * MANY], [0, *["a"] * MANY], [[0]] + [0] * MANY])
def test_a_list_of_prompts_does_too(prompt: list[Any]) -> None:
    """Each of the forms of a prompt ends at its first wrong item."""
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequestError):
            CompletionFamily().read({"model": "m", "prompt": prompt}, RequestDefaults())
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


def test_lists_have_bounds() -> None:
    """The documented numbers of messages and parts are taken, one more is not."""
    part = {"type": "text", "text": "a"}
    for count in (10_000, 10_001):
        bodies = [
            {"model": "m", "messages": [USER] * count},
            {"model": "m", "messages": [{"role": "user", "content": [part] * count}]},
        ]
        for body in bodies:
            if count == 10_000:
                assert ChatFamily().read(body, RequestDefaults()).prompts
            else:
                with pytest.raises(InvalidRequestError):
                    ChatFamily().read(body, RequestDefaults())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"a": [' + b"{}," * 100_000 + b"{}]}", "100000 objects"),
        (b'{"a": [' + b"[]," * 100_000 + b"[]]}", "100000 objects"),
        (b'{"a": [' + b'"",' * 250_000 + b'""]}', "250000 strings"),
        (b"{" + b",".join(b'"%d": 1' % i for i in range(2049)) + b"}", "2048 keys"),
    ],
)
def test_more_values_than_a_request_needs_are_refused(body: bytes, message: str) -> None:
    """The number of objects, arrays, strings and keys is bounded, and the error says so."""
    with pytest.raises(InvalidRequestError, match=message):
        parse_json_object(body)


def test_brackets_and_quotes_in_strings_do_not_count() -> None:
    """A long prompt of code is one string."""
    text = '{["\\' * 200_000
    body = chat_body(messages=[{"role": "user", "content": text}])
    assert body == parse_json_object(json.dumps(body).encode())


def test_millions_of_token_ids_are_a_prompt() -> None:
    """Token ids are not counted as values that cost: the model's context bounds them."""
    body = parse_json_object(b'{"model": "m", "prompt": [' + b"7," * 4_000_000 + b"7]}")
    (prompt,) = CompletionFamily().read(body, RequestDefaults()).prompts

    assert isinstance(prompt, TokenPrompt)
    assert 4_000_001 == len(prompt.tokens)
