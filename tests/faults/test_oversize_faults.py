"""Faults of size: bodies, fields and requests that are larger than what they are sent to."""

from __future__ import annotations

import contextlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from support.asks import CHAT, COMPLETIONS, Ask
from support.dangerous_model import HOARDS
from support.examination import Load
from support.planted import planted
from support.raw_http import exchange, request_bytes, statuses

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.asks import Client
    from support.examination import Examination
    from support.patient import Patient

pytestmark = pytest.mark.battery

_LIMIT = 1 << 20
_WIDE = ("--max-batch", "16", "--max-queue", "240")
_NARROW = ("--max-batch", "4", "--max-queue", "28")
_MESSAGE = {"role": "user", "content": "x"}
_FIELDS: list[dict[str, Any]] = [
    {"messages": [_MESSAGE] * 10_001},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 10_001}]},
    {"n": 129},
    {"n": 100},
    {"max_tokens": 2**31},
    {"max_tokens": 0},
    {"stop": ["a"] * 17},
    {"stop": "a" * 257},
    {"logit_bias": dict.fromkeys(map(str, range(1025)), 1)},
    {"logit_bias": {"0": 101}},
    {"logit_bias": {"99999999": 1}},
    {"logprobs": True, "top_logprobs": 21},
    {"seed": 2**64},
    {"metadata": {"a": "b" * 513}},
    {"user": "u" * 513},
]
"""Each beyond a limit of its own; 100 answers are more than this server has places."""


def _bodies() -> list[bytes]:
    """Return bodies that are within the limit, and too much all the same."""
    fields = [{"model": "tiny", "messages": [_MESSAGE]} | each for each in _FIELDS]
    deep = b'{"a": ' * 5000 + b"1" + b"}" * 5000
    many = b'{"a": [' + b"{}, " * 100_001 + b"{}]}"
    window = json.dumps({"model": "tiny", "messages": [_MESSAGE | {"content": "x" * 9000}]})
    return [*(json.dumps(each).encode() for each in fields), deep, many, window.encode()]


def test_more_than_a_request_may_have(
    tiny_model: Path, examine: Callable[[Patient], Examination]
) -> None:
    """Too long, too deep, too many: 400 for each, while others are served."""
    with planted(tiny_model, *_NARROW) as server:
        examination = examine(server)
        asks = examination.draw(10)
        with examination.load(asks) as load:
            for body in _bodies():
                answer = examination.send_raw(body)
                assert [400] == statuses(answer), body[:200]
                assert b"invalid_request_error" in answer
        examination.judge(load)


def _large_bodies(server: Patient) -> list[bytes]:
    """Return requests with a byte too much, or more, of which most are never sent whole."""
    headers = {"Host": "localhost", "Content-Type": "application/json", "Connection": "close"}
    headers |= server.headers
    chunked = headers | {"Transfer-Encoding": "chunked"}
    piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    return [
        request_bytes("POST", CHAT, chunked, piece * (_LIMIT // 0x10000) + b"1\r\n \r\n0\r\n\r\n"),
        request_bytes("POST", CHAT, headers, b" " * (_LIMIT + 1)),
        request_bytes("POST", CHAT, headers | {"Content-Length": str(_LIMIT + 1)}),
        request_bytes("POST", CHAT, headers | {"Content-Length": str(10**12)}, b"{" * 100),
        request_bytes(
            "POST", CHAT, headers | {"Content-Length": str(10**9), "Expect": "100-continue"}
        ),
        request_bytes("POST", CHAT, chunked, piece * 64),
        request_bytes("POST", CHAT, chunked, b"fffffff\r\n" + b" " * (2 * _LIMIT)),
    ]


def test_bodies_over_the_limit(tiny_model: Path, examine: Callable[[Patient], Examination]) -> None:
    """Declared or in chunks: a 413 as soon as it is known, and the connection's end."""
    with planted(tiny_model, *_NARROW, "--max-body-bytes", str(_LIMIT)) as server:
        examination = examine(server)
        asks = examination.draw(10)
        requests = _large_bodies(server) * 4
        with examination.load(asks) as load, ThreadPoolExecutor(4) as pool:
            for received in pool.map(lambda data: exchange(server.port, data), requests):
                server.hear(received)
                assert [413] == statuses(received)
                assert b"body_too_large" in received
        examination.judge(load)
        figure = "http_server_request_duration_seconds_count"
        assert len(requests) == server.total(figure, error_type="body_too_large")


def test_more_than_the_memory(tiny_model: Path, examine: Callable[[Patient], Examination]) -> None:
    """What never fits is refused with the largest size that does, and that size is served."""
    with planted(tiny_model, *_NARROW, "--memory-limit", "24MiB") as server:
        examination = examine(server)
        asks = examination.draw(8)
        largest: int = server.health()["memory"]["largest_request_tokens"]
        assert 1000 < largest < 8000

        def ask(prompt: int, answer: int) -> Ask:
            body = {"model": "tiny", "prompt": "a" * prompt, "max_tokens": answer}
            return Ask(COMPLETIONS, body)

        with examination.load([*asks, ask(largest - 5, 5), *[ask(100, largest - 99)] * 4]) as load:
            pass
        examination.judge(load, whole=False)
        *served, one, two, three, four = load.replies
        assert all(reply.whole for reply in served)
        for reply in (one, two, three, four):
            assert (400, "request_too_large") == (reply.status, reply.error)
            assert str(largest) in re.findall(r"\d+", reply.message)
            assert not reply.retry_after
        assert 4 == server.total("pharos_admission_refusals_total", reason="too_large")


def _ask_until_refused(examination: Examination) -> list[Client]:
    """Ask for little again and again until that is refused; return all who asked."""
    small = Ask(COMPLETIONS, {"model": "tiny", "prompt": "small", "max_tokens": 2})
    asked: list[Client] = []

    with contextlib.ExitStack() as stack:  # who is put off, and not refused, is waited for

        def is_refused() -> bool:
            asked.extend(stack.enter_context(examination.load([small], probe=False)).clients)
            return any(client.reply.error for client in asked)

        examination.server.wait_for(is_refused, "a refusal")
    return asked


def test_memory_that_is_not_there_now(
    dangerous_model: Path, examine: Callable[[Patient], Examination]
) -> None:
    """A model takes more than the limit for a while: what comes then is told when to come back, and
    what runs is whole.
    """
    flags = ("--trust-remote-code", "--memory-limit", "64MiB")
    with planted(dangerous_model, *_WIDE, *flags) as server:
        examination = examine(server)
        asks = examination.draw(6, tokens=600)
        hoarder = Ask(COMPLETIONS, {"model": "tiny", "prompt": HOARDS, "max_tokens": 2})
        with examination.load([*asks, hoarder], held=True) as load:
            small = _ask_until_refused(examination)
        examination.judge(Load([*load.clients, *small]), refusals=True)
        assert all(reply.whole for reply in load.replies)
        refused = [client.reply for client in small if not client.reply.whole]
        assert {(503, "memory")} == {(reply.status, reply.error) for reply in refused}
        assert all(1 <= int(reply.retry_after) <= 5 for reply in refused)
        assert len(refused) == server.total("pharos_admission_refusals_total", reason="memory")
        assert 0 == server.total("pharos_engine_restarts_total")
