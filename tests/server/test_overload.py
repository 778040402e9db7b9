"""More than the server holds: refusals at once, with the time to come back."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from mlx_pharos.resilience.api_keys import ApiKey
from support.client import CHAT, COMPLETIONS, chat_body, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_a_full_queue_refuses_in_less_than_200_ms(
    tiny_model: Path, serving: Callable[..., Any]
) -> None:
    """The refusal is a 503 with Retry-After; probes answer meanwhile; a freed place is usable."""
    with serving(tiny_model, max_batch=1, max_queue=2) as server:
        busy = [server.send(CHAT, **chat_body(max_tokens=8000, stream=True)) for _ in range(3)]
        wait_until(lambda: server.engine.in_flight == 3)
        for stream in (False, True):
            start = time.monotonic()
            answer = server.chat(stream=stream)
            assert time.monotonic() - start < 0.2
            assert (503, "queue_full") == (answer.status, answer.error["code"])
            assert int(answer.headers["Retry-After"]) >= 1
        start = time.monotonic()
        assert 200 == server.get("/livez").status == server.get("/readyz").status
        assert time.monotonic() - start < 0.2

        for connection in busy:
            connection.close()
        server.wait_idle()
        assert 200 == server.chat().status


def test_a_full_server_makes_nothing_of_a_body(
    tiny_model: Path, serving: Callable[..., Any]
) -> None:
    """What is wrong with a body is told once there is a place; until then it is not read."""
    with serving(tiny_model, max_batch=1, max_queue=1) as server:
        busy = [server.send(CHAT, **chat_body(max_tokens=8000, stream=True)) for _ in range(2)]
        wait_until(lambda: server.engine.in_flight == 2)
        for path in (CHAT, COMPLETIONS, CHAT + "/", "/" + CHAT):
            answer = server.post(path, b"{")
            assert (503, "queue_full") == (answer.status, answer.error["code"]), path
            assert answer.headers["X-Request-Id"]
        for connection in busy:
            connection.close()
        server.wait_idle()
        assert 400 == server.post(CHAT, b"{").status


def test_a_request_that_does_not_fit_whole_leaves_nothing_behind(
    tiny_model: Path, serving: Callable[..., Any]
) -> None:
    """When the third of three prompts finds the queue full, the first two are taken back."""
    with serving(tiny_model, max_batch=1, max_queue=2) as server:
        busy = server.send(CHAT, **chat_body(max_tokens=8000, stream=True))
        wait_until(lambda: server.engine.in_flight == 1)
        answer = server.post(COMPLETIONS, {"model": "tiny", "prompt": ["a", "b", "c"]})
        assert 503 == answer.status
        wait_until(lambda: server.engine.in_flight == 1, 2)
        busy.close()
        server.wait_idle()


def test_while_the_model_loads_probes_answer_and_requests_are_refused(
    tiny_model: Path, serving: Callable[..., Any]
) -> None:
    """The server listens before it can generate: alive, not ready, 503 that says when."""
    with serving(tiny_model, ready=False) as server:
        assert {"status": "ok"} == server.get("/livez").json
        ready, health = server.get("/readyz"), server.get("/health").json
        if server.engine.loaded is None:
            assert (503, "loading") == (ready.status, ready.json["status"])
            assert ready.headers["Retry-After"]
            assert ("loading", False) == (health["status"], health["model_loaded"])
            answer = server.chat()
            if server.engine.loaded is None:
                assert (503, "engine_unavailable") == (answer.status, answer.error["code"])
                assert answer.headers["Retry-After"]
        assert server.engine.wait_ready(15)
        assert {"status": "ready", "reason": ""} == server.get("/readyz").json
        health = server.get("/health").json
        assert ("ok", True, "tiny", "cpu") == (
            health["status"],
            health["model_loaded"],
            health["model"],
            health["device"],
        )
        assert health["cache"]["limit_bytes"] > 0


def test_a_tenant_that_floods_does_not_starve_another(
    tiny_model: Path, serving: Callable[..., Any]
) -> None:
    """With two keys, the second is taken while the first is refused, and served among its queue."""
    keys = (ApiKey.of("one", "first"), ApiKey.of("two", "second"))
    with serving(tiny_model, max_batch=1, max_queue=9, api_keys=keys) as server:
        flood = [
            server.send(CHAT, key="first", **chat_body(max_tokens=400, stream=True))
            for _ in range(8)
        ]
        wait_until(lambda: server.engine.in_flight == 8)
        refused = server.post(CHAT, chat_body(), Authorization="Bearer first")
        assert (503, "queue_full") == (refused.status, refused.error["code"])
        assert "share" in refused.error["message"]

        assert 200 == server.post(CHAT, chat_body(), Authorization="Bearer second").status
        # One of the flood ran, and at most one more had its turn: most of it still waits.
        assert server.engine.in_flight >= 4
        for connection in flood:
            connection.close()
        server.wait_idle()


def test_two_hundred_at_once_are_all_answered_or_told_when_to_come_back(
    tiny_model: Path, serving: Callable[..., Any]
) -> None:
    """At 4 places and a queue of 8: 200 ends, the bound held, and then it is idle and serves."""
    with serving(tiny_model, max_batch=4, max_queue=8) as server:
        most = 0

        def ask(number: int) -> int:
            nonlocal most
            answer = server.chat(max_tokens=64, seed=number)
            most = max(most, server.engine.in_flight)
            if answer.status == 503:
                assert "queue_full" == answer.error["code"]
                assert 1 <= int(answer.headers["Retry-After"]) <= 60
            return int(answer.status)

        with ThreadPoolExecutor(200) as pool:
            seen = Counter(pool.map(ask, range(200)))
        assert 200 == seen[200] + seen[503]
        assert seen[200] >= 12
        assert most <= 12
        server.wait_idle()
        assert 200 == server.chat().status
