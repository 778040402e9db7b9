"""The engine is killed: every client gets the answer that it would have got, and one of it."""

from __future__ import annotations

import os
import re
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest

from mlx_pharos.engine.protocol import Delta
from mlx_pharos.resilience.restarts import RestartPolicy
from support.asks import sequences_of
from support.client import CHAT, COMPLETIONS, Answer, RunningServer, chat_body, events, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from mlx_pharos.engine.protocol import Step

_ATTEMPTS = 5
_WORDS = "The quick brown fox jumps over the lazy dog. "


@pytest.fixture(scope="module")
def mortal(tiny_model: Path, serving: Callable[..., Any]) -> Iterator[RunningServer]:
    """A server whose engine is killed as often as the tests like."""
    quick = RestartPolicy(limit=50, first_delay_seconds=0.01, longest_delay_seconds=0.01)
    with serving(tiny_model, max_batch=8, max_queue=24, restarts=quick) as server:
        yield server


class _Killer:
    """Kills the engine after so many tokens of all requests together; listens to its steps."""

    def __init__(self, server: RunningServer, after: int) -> None:
        self._engine = server.engine
        self._next = server.engine.on_step
        self._after = after
        self.killed = False

    def __call__(self, step: Step) -> None:
        self._after -= sum(isinstance(event, Delta) for event in step.events)
        if self._after <= 0 and not self.killed:
            self.killed = True
            os.kill(self._engine.pid, signal.SIGKILL)
        self._next(step)


def _ask_all(server: RunningServer, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[Answer]:
    """Send all at the same time; return the answers in their order.

    The engine stands still until it has them all: none comes when it is down already.
    """
    answers: dict[int, Answer] = {}

    def ask(place: int, path: str, body: dict[str, Any]) -> None:
        answers[place] = server.post(path, body)

    threads = [
        threading.Thread(target=ask, args=(place, path, body))
        for place, (path, body) in enumerate(requests)
    ]
    engine = server.engine.pid
    os.kill(engine, signal.SIGSTOP)
    try:
        for thread in threads:
            thread.start()
        wait_until(
            lambda: server.engine.in_flight == sum(sequences_of(body) for _, body in requests)
        )
    finally:
        os.kill(engine, signal.SIGCONT)
    for thread in threads:
        thread.join(18)
        assert not thread.is_alive()
    return [answers[place] for place in range(len(requests))]


def _ask_and_kill(
    server: RunningServer,
    requests: Sequence[tuple[str, dict[str, Any]]],
    *,
    after: int,
    resumed: int,
) -> list[Answer]:
    """Ask, and kill the engine meanwhile. It may be ahead of what it has told, and be done before
    it dies; that shows nothing, so it is asked again.

    Args:
        server: Whose engine is killed.
        requests: What to send.
        after: Tokens of all together.
        resumed: How many requests must have gone on in the next engine, at least.
    """
    for _ in range(_ATTEMPTS):
        killer = _Killer(server, after)
        listener = server.engine.on_step
        before = _resumed(server)
        server.engine.on_step = killer
        try:
            answers = _ask_all(server, requests)
        finally:
            server.engine.on_step = listener
        assert killer.killed
        if _resumed(server) - before >= resumed:
            return answers
        wait_until(lambda: server.get("/readyz").status == 200)
    raise AssertionError("no kill came before the end")


def _resumed(server: RunningServer) -> int:
    """Return how many requests went on in another engine so far, as the metrics tell it."""
    scraped = server.get("/metrics").body.decode()
    found = re.findall(r"^pharos_requests_resumed_total\{.*\} (\d+)", scraped, re.MULTILINE)
    return sum(map(int, found))


def _said(answer: Answer) -> Any:
    """All that a client sees but ids and times: per choice its text, scores and end; the usage."""
    assert 200 == answer.status, answer.body
    if not answer.body.startswith((b"data", b":")):
        body = answer.json
        return body["choices"], body["usage"]
    assert 1 == answer.body.count(b"data: [DONE]")
    texts: dict[int, str] = {}
    scores: dict[int, list[Any]] = {}
    ends: dict[int, list[str]] = {}
    usage = None
    for event in events(answer.body):
        assert "error" not in event, event
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            index = choice["index"]
            text = choice["delta"].get("content", "") if "delta" in choice else choice["text"]
            texts[index] = texts.get(index, "") + text
            if choice["logprobs"]:
                scores.setdefault(index, []).extend(choice["logprobs"].get("content") or ())
            if choice["finish_reason"]:
                ends.setdefault(index, []).append(choice["finish_reason"])
    return texts, scores, ends, usage


def _streams(count: int) -> list[tuple[str, dict[str, Any]]]:
    return [
        (CHAT, chat_body(max_tokens=150, stream=True, messages=[_user(f"{_WORDS} {each}")]))
        for each in range(count)
    ]


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(("after", "resumed"), [(0, 8), (300, 8), (1100, 1)])
def test_eight_greedy_streams_survive_their_engine(
    mortal: RunningServer, after: int, resumed: int
) -> None:
    """Killed in the prefill, in the middle or near the end: those that were not done go on, and
    each client receives the text of an undisturbed run, byte for byte, and one ``[DONE]``.
    """
    undisturbed = [_said(answer) for answer in _ask_all(mortal, _streams(8))]
    answers = _ask_and_kill(mortal, _streams(8), after=after, resumed=resumed)
    disturbed = [_said(answer) for answer in answers]
    assert undisturbed == disturbed
    mortal.wait_idle()


def _kinds() -> list[tuple[str, dict[str, Any]]]:
    """Answers of every kind; more than fit the batch."""
    long = {"max_tokens": 120}
    seeded = {"temperature": 1.0, "seed": 7, **long}
    prompts = {"model": "tiny", "prompt": ["one", "two"], "temperature": 0, **long}
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    return [
        (CHAT, chat_body(**long)),
        (CHAT, chat_body(**seeded)),
        (CHAT, chat_body(**seeded, n=3, **usage)),
        (CHAT, chat_body(**long, frequency_penalty=0.8, presence_penalty=0.5)),
        (CHAT, chat_body(**long, logprobs=True, top_logprobs=2, stream=True)),
        (COMPLETIONS, {**prompts, "n": 2, "echo": True}),
        (COMPLETIONS, {**prompts, "stream": True, "seed": 3, "temperature": 0.7}),
        (CHAT, chat_body(max_tokens=40, messages=[_user("last in the queue")], **usage)),
    ]


@pytest.mark.parametrize(("after", "resumed"), [(0, 10), (500, 4)])
def test_every_kind_of_answer_survives(mortal: RunningServer, after: int, resumed: int) -> None:
    """JSON bodies, seeded choices, penalties, scores, several prompts, and what waited in the
    queue: the same text, ends and usage.
    """
    undisturbed = [_said(answer) for answer in _ask_all(mortal, _kinds())]
    answers = _ask_and_kill(mortal, _kinds(), after=after, resumed=resumed)
    disturbed = [_said(answer) for answer in answers]
    assert _loosened(undisturbed) == _loosened(disturbed)
    mortal.wait_idle()


def _loosened(said: Any) -> Any:
    """Let scores differ in the last bits, as they do with what else is in the batch, and leave
    out how much of a prompt was in the cache: a new engine's is empty.
    """
    if isinstance(said, dict):
        return {k: _loosened(each) for k, each in said.items() if k != "prompt_tokens_details"}
    if isinstance(said, float):
        return pytest.approx(said, abs=1e-3)
    return [_loosened(each) for each in said] if isinstance(said, (list, tuple)) else said


def test_stop_string_that_the_death_cuts_is_found(mortal: RunningServer) -> None:
    """At whichever of its tokens the engine dies, the text ends before the stop string."""
    text = mortal.chat(max_tokens=180).json["choices"][0]["message"]["content"]
    stop = text[30:150]
    where = text.index(stop)
    tokens_before = len(text[:where].encode())
    for inside in (2, 40):
        body = chat_body(max_tokens=180, stop=[stop], stream=True)
        (answer,) = _ask_and_kill(mortal, [(CHAT, body)], after=tokens_before + inside, resumed=1)
        texts, _, ends, _ = _said(answer)
        assert ({0: text[:where]}, {0: ["stop"]}) == (texts, ends)


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


def test_requests_that_no_engine_will_serve_end_in_words(
    tiny_model: Path, serving: Callable[..., Any]
) -> None:
    """Past the last restart, plain answers become a 503 with a body, streams end with an error
    event and ``[DONE]``.
    """
    with serving(tiny_model, max_batch=2, max_queue=4, restarts=RestartPolicy(limit=0)) as server:
        requests = [
            (CHAT, chat_body(max_tokens=8000, stream=stream))
            for stream in (False, True, False, True)
        ]
        answers = _ask_and_kill(server, requests, after=100, resumed=0)
        for answer in answers:
            if answer.status == 503:
                assert "engine_died" == answer.error["code"]
                assert answer.headers["Retry-After"]
            else:
                *_, last = events(answer.body)
                assert "engine_died" == last["error"]["code"]
        assert 503 == answers[0].status
        server.wait_idle()


def test_a_restart_is_told(tiny_model: Path, serving: Callable[..., Any]) -> None:
    """The server is ready again by itself; the scrape and the health report say how the old
    engine ended, and how many requests went on.
    """
    with serving(tiny_model) as server:
        request = (CHAT, chat_body(max_tokens=500))
        (answer,) = _ask_and_kill(server, [request], after=20, resumed=1)
        assert 200 == answer.status
        assert 200 == server.get("/readyz").status
        scraped = server.get("/metrics").body.decode()
        assert 'pharos_engine_restarts_total{reason="SIGKILL"} 1' in scraped
        assert 'pharos_requests_resumed_total{reason="SIGKILL"} 1' in scraped
        assert {"restarts": 1, "last_reason": "SIGKILL"} == server.get("/health").json["engine"]
