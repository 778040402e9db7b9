"""Requests that go on in another engine: their tokens are those of an undisturbed run."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest

from mlx_pharos.engine.client import EngineClient, start_engine
from mlx_pharos.engine.engine_state import Endurance
from mlx_pharos.engine.protocol import ChatMessage, ChatPrompt, Delta, Sampling, TextPrompt
from mlx_pharos.resilience.errors import EngineUnavailableError
from mlx_pharos.resilience.restarts import RestartPolicy
from support.engine import GREEDY, Answer, collect, engine_options, wait_until_idle

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from mlx_pharos.engine.generation import Generation
    from mlx_pharos.engine.protocol import Prompt, Step

_SEEDED = Sampling(temperature=0.9, top_p=0.95, seed=1234567)
_PENALIZED = Sampling(temperature=0.0, presence_penalty=0.7, frequency_penalty=0.4)
_REPEATING = Sampling(temperature=0.8, repetition_penalty=1.3, seed=99)
_CHAT = ChatPrompt((ChatMessage("user", "Tell me more, please: \u00e9\u00e8"),))
_TOKENS = 120


@pytest.fixture(scope="module")
def mortal(tiny_model: Path) -> Iterator[EngineClient]:
    """An engine that is killed as often as a test likes."""
    client = start_engine(
        engine_options(tiny_model, max_batch=8, prefill_step=64),
        max_batch=8,
        max_queue=16,
        restarts=RestartPolicy(limit=50, first_delay_seconds=0.01, longest_delay_seconds=0.01),
        endurance=Endurance(crash_budget=20),
    )
    assert client.wait_ready(15), client.down_reason
    yield client
    client.close()


def _requests() -> list[tuple[Prompt, Sampling, dict[str, Any]]]:
    """What is asked: each kind of request that keeps state of its own."""
    return [
        (TextPrompt("greedy"), GREEDY, {}),
        (_CHAT, _SEEDED, {}),
        (TextPrompt("penalties"), _PENALIZED, {}),
        (TextPrompt("repetition " * 30), _REPEATING, {}),
        (TextPrompt("choices"), _SEEDED, {"n": 3}),
        (TextPrompt("scores"), GREEDY, {"logprobs": True, "top_logprobs": 2}),
        (TextPrompt("waits in the queue"), GREEDY, {"max_tokens": 40}),
    ]


def _submit(
    engine: EngineClient, prompt: Prompt, sampling: Sampling, fields: dict[str, Any]
) -> Generation:
    """Submit; again once there is an engine, where this thread was late and it died before."""
    while True:
        try:
            return engine.submit(prompt, sampling, **fields)
        except EngineUnavailableError:
            assert engine.wait_ready(20), engine.down_reason


def _run(
    engine: EngineClient, requests: Sequence[tuple[Prompt, Sampling, dict[str, Any]]]
) -> list[tuple[Generation, Answer, threading.Thread]]:
    """Submit all; a thread per request collects its answer."""
    found = []
    for prompt, sampling, options in requests:
        fields = {"max_tokens": _TOKENS} | options
        generation = _submit(engine, prompt, sampling, fields)
        answer = Answer()
        n = options.get("n", 1)

        def gather(
            generation: Generation = generation, answer: Answer = answer, n: int = n
        ) -> None:
            got = collect(generation, n=n)
            answer.events, answer.finishes = got.events, got.finishes

        thread = threading.Thread(target=gather)
        thread.start()
        found.append((generation, answer, thread))
    return found


def _joined(runs: list[tuple[Generation, Answer, threading.Thread]]) -> list[Answer]:
    for _, _, thread in runs:
        thread.join(15)
        assert not thread.is_alive()
    return [answer for _, answer, _ in runs]


def _choices(answer: Answer) -> list[tuple[str, list[int], str, int, int]]:
    """All that must not change, per choice."""
    return [
        (
            answer.text(choice),
            answer.tokens(choice),
            finish.reason,
            finish.prompt_tokens,
            finish.completion_tokens,
        )
        for choice, finish in sorted(answer.finishes.items())
    ]


class _Killer:
    """Kills the engine after so many tokens of all requests together, once for each number."""

    def __init__(self, engine: EngineClient, *after: int) -> None:
        self._engine = engine
        self._after = list(after)
        self._seen = 0

    def __call__(self, step: Step) -> None:
        """Look at a step, in the reader thread."""
        self._seen += sum(isinstance(event, Delta) for event in step.events)
        if self._after and self._seen >= self._after[0]:
            del self._after[0]
            os.kill(self._engine.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def undisturbed(mortal: EngineClient) -> list[Answer]:
    """The answers of an engine that lives."""
    return _joined(_run(mortal, _requests()))


@pytest.mark.parametrize("kills", [(0,), (100,), (850,), (40, 300)])
def test_every_kind_of_request_goes_on_as_if_nothing_had_happened(
    mortal: EngineClient, undisturbed: list[Answer], kills: tuple[int, ...]
) -> None:
    """Greedy, seeded, with penalties, several choices, scores, queued: the same tokens and text,
    whether the engine dies in a prefill, early, late, or again.
    """
    mortal.on_step = _Killer(mortal, *kills)
    disturbed = _joined(_run(mortal, _requests()))
    mortal.on_step = lambda _: None
    for expected, actual in zip(undisturbed, disturbed, strict=True):
        assert _choices(expected) == _choices(actual)
    assert len(kills) == max(len(answer.resumptions) for answer in disturbed)
    wait_until_idle(mortal)
