"""An engine that stands still: nobody's deadline, departure or shutdown waits for it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest

from support.client import CHAT, chat_body, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.client import Answer, RunningServer

_LARGE = "word " * 100_000
"""More than a pipe holds."""


@pytest.fixture
def silent(tiny_model: Any, serving: Callable[..., Any]) -> Iterator[RunningServer]:
    """Serve with an engine that stands still from now on, and goes on at the end."""
    with serving(tiny_model, max_batch=4, max_queue=8) as server:
        os.kill(server.engine.pid, signal.SIGSTOP)
        try:
            yield server
        finally:
            os.kill(server.engine.pid, signal.SIGCONT)
        server.wait_idle()
        assert 200 == server.chat(max_tokens=2).status


def _ask(server: RunningServer, content: str, timeout: str, answers: list[Answer]) -> None:
    body = chat_body(messages=[{"role": "user", "content": content}])
    answers.append(server.post(CHAT, body, X_Request_Timeout=timeout))


def test_a_large_prompt_holds_up_no_deadline(silent: RunningServer) -> None:
    """What the pipe does not take waits by itself: all others are told in time that theirs is over."""
    large: list[Answer] = []
    thread = threading.Thread(target=_ask, args=(silent, _LARGE, "2", large))
    thread.start()
    wait_until(lambda: silent.engine.in_flight == 1)
    small: list[Answer] = []
    _ask(silent, "small", "0.5", small)
    assert 504 == small[0].status
    assert not large
    thread.join(10)
    assert 504 == large[0].status


def test_a_large_prompt_holds_up_no_client_that_leaves(silent: RunningServer) -> None:
    """Their threads are free again, though the engine has not heard of it."""
    body = chat_body(messages=[{"role": "user", "content": _LARGE}])
    with contextlib.closing(silent.send(CHAT, **body)):
        wait_until(lambda: silent.engine.in_flight == 1)
        for _ in range(3):
            silent.send(CHAT, **chat_body()).close()
        wait_until(lambda: silent.engine.in_flight == 4)
        wait_until(lambda: silent.listener.threads()[0] == 1)
    wait_until(lambda: silent.listener.threads()[0] == 0)
