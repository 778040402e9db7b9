"""Faults on the wire: requests of which another parser would think differently, and hidden ones."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from support.asks import CHAT
from support.malformed import HEADS
from support.planted import planted
from support.raw_http import exchange, request_bytes, statuses

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.examination import Examination
    from support.patient import Patient

pytestmark = pytest.mark.battery

_LIVE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
_MALFORMED = {name: head for name, (head, status) in HEADS.items() if status != 200}
_FRAMINGS = {
    "length and chunks": "Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n",
    "chunks and length": "Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n",
    "two lengths": "Content-Length: 5\r\nContent-Length: {length}\r\n",
    "odd length": "Content-Length: +{length}\r\n",
    "odd coding": "Content-Length: 5\r\nTransfer-Encoding: xchunked\r\n",
    "coding with a tab": "Content-Length: 5\r\nTransfer-Encoding:\tchunked\r\n",
    "coding before a space": "Content-Length: 5\r\nTransfer-Encoding : chunked\r\n",
    "coding twice": "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    "folded length": "Content-Length:\r\n {length}\r\n",
    "length after a line feed": "X: y\nContent-Length: {length}\r\n",
}
"""Headers with which one parser sees one request, and another one two."""


def _hidden(server: Patient) -> bytes:
    """Return a request that would be answered and counted if anything took it for one."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hidden"}], "max_tokens": 1}
    headers = {"Host": "localhost", "Content-Type": "application/json", **server.headers}
    return request_bytes("POST", CHAT, headers, json.dumps(body).encode())


def _smuggling(server: Patient) -> list[bytes]:
    """Return generation requests with a right key that have another one within or behind them."""
    hidden = _hidden(server)
    body = b"0\r\n\r\n" + hidden
    head = "".join(f"{name}: {value}\r\n" for name, value in server.headers.items())
    return [
        (
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"{head}{framing.format(length=len(body))}\r\n"
        ).encode()
        + body
        for framing in _FRAMINGS.values()
    ]


def _assert_one_refusal(server: Patient, data: bytes, draw: random.Random) -> None:
    """A 4xx and the connection's end, alone and behind a good request, in any pieces."""
    for before in (b"", _LIVE):
        whole = before + data
        cuts = [draw.randrange(len(whole)) for _ in range(draw.randrange(4))]
        received = exchange(server.port, whole, cuts=cuts)
        server.hear(received)
        *good, refused = statuses(received)
        assert [200] * bool(before) == good, data
        assert refused in {400, 413, 431}, data


@pytest.mark.parametrize("kind", ["malformed", "smuggling"])
def test_requests_that_can_be_read_in_two_ways(
    tiny_model: Path, examine: Callable[[Patient], Examination], seed: int, kind: str
) -> None:
    """Each gets one refusal, what is hidden behind it is never read, and nobody else notices."""
    with planted(tiny_model, "--max-batch", "4", "--max-queue", "28") as server:
        hostile = (
            _smuggling(server)
            if kind == "smuggling"
            else [head + _hidden(server) for head in _MALFORMED.values()]
        )
        examination = examine(server)
        asks = examination.draw(8)
        with examination.load(asks) as load, ThreadPoolExecutor(4) as pool:
            jobs = [
                pool.submit(_assert_one_refusal, server, data, random.Random(seed + place))
                for place, data in enumerate(hostile)
            ]
            for job in jobs:
                job.result()
        examination.judge(load)
        figure = "http_server_request_duration_seconds_count"
        refused = sum(
            server.total(figure, error_type=code)
            for code in ("invalid_value", "headers_too_large", "body_too_large")
        )
        assert 2 * len(hostile) == refused
