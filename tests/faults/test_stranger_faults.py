"""Faults of strangers: without a key, with a wrong one, by a foreign name, from a foreign page."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from support.asks import CHAT
from support.planted import planted
from support.raw_http import exchange, request_bytes, statuses

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.examination import Examination
    from support.patient import Patient

pytestmark = pytest.mark.battery

_JSON = "application/json"
_WRONG = "sk-stranger-0123456789"
_EVIL = "evil.example"
_TIMES = 6


@dataclass(frozen=True)
class _Stranger:
    """Who asks for what, and what he is told."""

    status: int
    code: str
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"
    target: str = CHAT
    key: bool = False
    """Whether he has the right key."""

    @property
    def generates(self) -> bool:
        """Whether he gets as far as a generation request that is refused."""
        return self.status == 415


_STRANGERS = [
    _Stranger(401, "invalid_api_key"),
    _Stranger(401, "invalid_api_key", {"Authorization": f"Bearer {_WRONG}"}),
    _Stranger(401, "invalid_api_key", {"Authorization": f"Basic {_WRONG}"}),
    _Stranger(401, "invalid_api_key", {"Authorization": "Bearer \xe9\xff"}),
    _Stranger(401, "invalid_api_key", method="GET", target="/v1/models"),
    _Stranger(401, "invalid_api_key", method="GET", target="/v1/nowhere"),
    _Stranger(403, "metrics_forbidden", method="GET", target="/metrics"),
    _Stranger(403, "host_forbidden", {"Host": _EVIL}, key=True),
    _Stranger(403, "host_forbidden", {"Host": f"127.0.0.1.{_EVIL}:8080"}, key=True),
    _Stranger(403, "host_forbidden", target=f"http://{_EVIL}{CHAT}", key=True),
    _Stranger(403, "host_forbidden", {"Host": _EVIL}, method="GET", target="/health"),
    _Stranger(
        403, "host_forbidden", {"Host": f"{_EVIL}:80", "Origin": f"http://{_EVIL}"}, key=True
    ),
    _Stranger(403, "origin_forbidden", {"Origin": f"https://{_EVIL}"}, key=True),
    _Stranger(403, "origin_forbidden", {"Origin": "null"}, key=True),
    _Stranger(
        403,
        "origin_forbidden",
        {"Origin": f"https://{_EVIL}", "Access-Control-Request-Method": "POST"},
        method="OPTIONS",
    ),
    _Stranger(415, "unsupported_media_type", {"Content-Type": "text/plain"}, key=True),
    _Stranger(
        415,
        "unsupported_media_type",
        {"Content-Type": "application/x-www-form-urlencoded"},
        key=True,
    ),
    _Stranger(415, "unsupported_media_type", {"Content-Encoding": "gzip"}, key=True),
]


def _ask(server: Patient, stranger: _Stranger) -> None:
    """Send his request, and see that he learns that it is refused and nothing else."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "let me in"}]}
    headers = {"Host": "localhost", "Content-Type": _JSON, "Connection": "close"}
    headers |= server.headers if stranger.key else {}
    data = json.dumps(body).encode() if stranger.method == "POST" else b""
    request = request_bytes(stranger.method, stranger.target, headers | stranger.headers, data)
    received = exchange(server.port, request)
    server.hear(received)
    assert [stranger.status] == statuses(received), stranger
    head, _, answer = received.partition(b"\r\n\r\n")
    assert b"access-control" not in head.lower()
    assert stranger.code == json.loads(answer)["error"]["code"], stranger


def test_strangers(tiny_model: Path, examine: Callable[[Patient], Examination]) -> None:
    """They are refused and counted one by one while others are served, and no word of theirs stays."""
    with planted(tiny_model, "--max-batch", "4", "--max-queue", "28") as server:
        server.secrets += [_WRONG, _EVIL]
        examination = examine(server)
        asks = examination.draw(10)
        with examination.load(asks) as load, ThreadPoolExecutor(8) as pool:
            jobs = [pool.submit(_ask, server, each) for each in _STRANGERS * _TIMES]
            for job in jobs:
                job.result()
        examination.sent_besides(_TIMES * sum(each.generates for each in _STRANGERS))
        examination.judge(load)
        told = Counter(each.code for each in _STRANGERS)
        figure = "http_server_request_duration_seconds_count"
        for code, count in told.items():
            assert _TIMES * count == server.total(figure, error_type=code), code
