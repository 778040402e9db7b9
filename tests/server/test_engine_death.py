"""The engine is killed: every request ends, in words, and the server stays."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

from mlx_pharos.resilience.restarts import RestartPolicy
from support.client import CHAT, Answer, chat_body, events, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_no_request_hangs_when_the_engine_dies(
    tiny_model: Path, serving: Callable[..., Any]
) -> None:
    """Plain answers become a 503 with a body, streams end with an error event and [DONE]."""
    with serving(tiny_model, max_batch=2, max_queue=4) as server:
        answers: list[Answer] = []

        def ask(**fields: Any) -> None:
            answers.append(server.chat(max_tokens=8000, **fields))

        threads = [
            threading.Thread(target=ask, kwargs={"stream": stream})
            for stream in (False, True, False, True)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: server.engine.snapshot().running == 2)
        wait_until(lambda: server.engine.snapshot().waiting == 2)
        os.kill(server.engine.pid, signal.SIGKILL)
        for thread in threads:
            thread.join(5)
            assert not thread.is_alive()

        assert [200, 200, 503, 503] == sorted(answer.status for answer in answers)
        for answer in answers:
            if answer.status == 503:
                assert "engine_died" == answer.error["code"]
                assert answer.headers["Retry-After"]
            else:
                *_, last = events(answer.body)
                assert "engine_died" == last["error"]["code"]


def test_without_an_engine_the_server_answers_everything_else(
    tiny_model: Path, serving: Callable[..., Any]
) -> None:
    """Alive and not ready; new requests are refused, and the body of one is still judged."""
    with serving(tiny_model, restarts=RestartPolicy(limit=0)) as server:
        os.kill(server.engine.pid, signal.SIGKILL)
        wait_until(lambda: server.get("/readyz").status == 503)

        assert 200 == server.get("/livez").status == server.get("/v1/models").status
        assert "down" == server.get("/readyz").json["status"]
        assert ("down", False) == (
            server.get("/health").json["status"],
            server.get("/health").json["model_loaded"],
        )
        assert (503, "engine_unavailable") == (
            server.chat().status,
            server.chat().error["code"],
        )
        assert 400 == server.post(CHAT, chat_body(n=0)).status


def test_a_restart_is_counted_and_serves(tiny_model: Path, serving: Callable[..., Any]) -> None:
    """The server is ready again by itself, and the scrape says how the old engine ended."""
    with serving(tiny_model) as server:
        before = server.chat(temperature=0).json["choices"][0]["message"]
        os.kill(server.engine.pid, signal.SIGKILL)
        wait_until(lambda: server.get("/readyz").status == 503)
        wait_until(lambda: server.get("/readyz").status == 200)
        assert before == server.chat(temperature=0).json["choices"][0]["message"]
        assert (
            'pharos_engine_restarts_total{reason="SIGKILL"} 1'
            in server.get("/metrics").body.decode()
        )
