"""Deadlines: of the queue, of the whole answer, and what a client may ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mlx_pharos.resilience.deadline import Deadlines
from mlx_pharos.resilience.errors import (
    DeadlineExceededError,
    DrainingError,
    InvalidRequestError,
    QueueTimeoutError,
    ShutdownError,
)
from mlx_pharos.server.patience import RequestPatience, requested_seconds
from support.client import CHAT, chat_body, events, wait_until
from support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.client import RunningServer

LONG = {"max_tokens": 60_000}


@pytest.fixture(scope="module")
def lone(
    tmp_path_factory: pytest.TempPathFactory, serving: Callable[..., Any]
) -> Iterator[RunningServer]:
    """One place in the batch, two to wait, and half a second of patience for those."""
    model: Path = write_tiny_model(tmp_path_factory.mktemp("long"), context_length=65536)
    with serving(model, max_batch=1, max_queue=2, queue_seconds=0.5) as running:
        yield running


@pytest.mark.parametrize("stream", [False, True])
def test_who_waits_too_long_is_told_when_to_come_back(lone: RunningServer, stream: bool) -> None:
    """A stream too: nothing was sent yet, so it is a status that clients retry by themselves."""
    running = lone.send(CHAT, **chat_body(**LONG, stream=True))
    assert running.recv(65536)
    answer = lone.chat(stream=stream)

    assert (503, "queue_timeout") == (answer.status, answer.error["code"])
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    # Its place is free at once; the one before it goes on, however long it takes.
    wait_until(lambda: lone.engine.in_flight == 1)
    assert running.recv(65536)
    running.close()
    lone.wait_idle()


def test_an_answer_that_takes_too_long_is_a_504(lone: RunningServer) -> None:
    """The engine lets go of it, and the next one is served."""
    answer = lone.post(CHAT, chat_body(**LONG), X_Request_Timeout="0.5")

    assert (504, "deadline_exceeded") == (answer.status, answer.error["code"])
    lone.wait_idle()
    assert 200 == lone.chat().status


def test_a_stream_that_takes_too_long_ends_with_an_error_event(lone: RunningServer) -> None:
    """After the text that there was, never with a silent cut."""
    answer = lone.post(CHAT, chat_body(**LONG, stream=True), X_Request_Timeout="0.5")

    assert 200 == answer.status
    assert b'"content"' in answer.body
    assert "deadline_exceeded" == [*events(answer.body)][-1]["error"]["code"]
    lone.wait_idle()


def test_a_deadline_holds_in_the_queue_too(lone: RunningServer) -> None:
    """What the client gave up on is not kept waiting."""
    running = lone.send(CHAT, **chat_body(**LONG, stream=True))
    assert running.recv(65536)
    answer = lone.post(CHAT, chat_body(), X_Request_Timeout="0.05")

    assert (504, "deadline_exceeded") == (answer.status, answer.error["code"])
    running.close()
    lone.wait_idle()


def test_the_servers_own_limit_holds_without_a_header(
    tiny_model: Path, serving: Callable[..., Any]
) -> None:
    """A client can shorten it and not lengthen it."""
    with serving(tiny_model, request_seconds=0.3) as server:
        for headers in ({}, {"X_Request_Timeout": "600"}):
            answer = server.post(CHAT, chat_body(max_tokens=8000), **headers)
            assert (504, "deadline_exceeded") == (answer.status, answer.error["code"])


@pytest.mark.parametrize("header", ["", "0", "-1", "abc", "1e9", "nan", "inf", "1_0", "٣", " 1"])
def test_a_header_that_is_no_time_is_a_400(header: str) -> None:
    """The message names the header and what it should be."""
    with pytest.raises(InvalidRequestError, match="X-Request-Timeout"):
        requested_seconds(header, 10)


@pytest.mark.parametrize(
    ("header", "allowed", "seconds"),
    [(None, 7, 7), (None, 0, 0), ("3", 7, 3), ("30", 7, 7), ("30.5", 0, 30.5), ("1e1", 0, 10)],
)
def test_the_shorter_time_counts(header: str | None, allowed: float, seconds: float) -> None:
    """Of the server's limit and the client's; 0 is none."""
    assert seconds == requested_seconds(header, allowed)


def test_the_queue_deadline_is_over_once_the_engine_begins() -> None:
    """Then the deadline of the whole answer alone counts."""
    now = [0.0]
    deadlines = Deadlines(
        total_seconds=10, queue_seconds=2, retry_after=lambda: 3.0, clock=lambda: now[0]
    )
    now[0] = 1.9
    deadlines.check(started=False)
    now[0] = 9.0
    deadlines.check(started=True)
    with pytest.raises(QueueTimeoutError) as caught:
        deadlines.check(started=False)
    assert 3.0 == caught.value.retry_after
    now[0] = 10.0
    for started in (False, True):
        with pytest.raises(DeadlineExceededError):
            deadlines.check(started=started)


def test_who_had_not_begun_at_a_shutdown_is_told_that_nothing_was_started() -> None:
    """And who had, that it was cut off. Both may come again."""
    deadlines = Deadlines(total_seconds=0, queue_seconds=0, retry_after=lambda: 3.0)
    patience = RequestPatience(bool, lambda: True, deadlines)
    with pytest.raises(DrainingError) as refused:
        patience.check(started=False)
    with pytest.raises(ShutdownError) as cut:
        patience.check(started=True)
    assert [5.0] * 2 == [refused.value.retry_after, cut.value.retry_after]


def test_deadlines_count_from_when_the_request_was_read() -> None:
    """What it waited for a thread is of the time that it has."""
    deadlines = Deadlines(
        total_seconds=10,
        queue_seconds=2,
        retry_after=lambda: 3.0,
        started_at=100.0,
        clock=lambda: 102.5,
    )
    deadlines.check(started=True)
    with pytest.raises(QueueTimeoutError):
        deadlines.check(started=False)


def test_a_stream_that_waits_sends_its_headers_when_proxies_want_to_hear(
    tmp_path: Path, serving: Callable[..., Any]
) -> None:
    """After the keep-alive time; from then on an error is an event."""
    model = write_tiny_model(tmp_path / "long", context_length=65536)
    with serving(
        model, max_batch=1, max_queue=2, queue_seconds=1.5, keep_alive_seconds=0.3
    ) as server:
        running = server.send(CHAT, **chat_body(**LONG, stream=True))
        assert running.recv(65536)
        answer = server.chat(stream=True)
        assert 200 == answer.status
        assert b"queue_timeout" in answer.body
        running.close()
        server.wait_idle()
