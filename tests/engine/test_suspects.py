"""Requests with which a step fails, among others: those are spared, and all comes to an end."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from typing import TYPE_CHECKING, Any

import pytest

from mlx_pharos.engine.client import start_engine
from mlx_pharos.engine.protocol import Cancel, Failed, Finish, Sampling, TextPrompt
from mlx_pharos.engine.worker.vocabulary import Vocabulary
from mlx_pharos.resilience.errors import EngineFailureError
from support.client import wait_until
from support.dangerous_model import FAILS, write_dangerous_model
from support.driven_engine import DrivenEngine
from support.engine import GREEDY, collect, engine_options, generate, wait_until_idle

if TYPE_CHECKING:
    from pathlib import Path

    from mlx_pharos.engine.models.loading import LoadedModel

_BAD = 7
"""A token with which a step fails. None of the tests' requests generates it but those that are
made to."""
_IN_PROMPT: dict[str, Any] = {"prompt": [*range(70, 110), _BAD, *range(70, 80)]}
"""A step of prefill fails."""
_LAST_OF_PROMPT: dict[str, Any] = {"prompt": [*range(70, 110), _BAD]}
"""The first step of decoding fails, and all that decode beside it."""
_GENERATED: dict[str, Any] = {
    "prompt": [*range(70, 110)],
    "sampling": Sampling(temperature=0.0, logit_bias=((_BAD, 1000.0),)),
}
"""It has a token already when the step fails."""
_CULPRITS = [_IN_PROMPT, _LAST_OF_PROMPT, _GENERATED]
_INNOCENTS = (1, 2, 3)


class _FailingModel:
    """The real model, which raises what Metal does where it is given a bad token, or too much."""

    def __init__(self, model: Any, *, rows: int = 100) -> None:
        self._model = model
        self._rows = rows
        self.failures = 0

    def __call__(self, inputs: Any, **options: Any) -> Any:
        if inputs.shape[0] > self._rows or _BAD in itertools.chain(*inputs.tolist()):
            self.failures += 1
            message = "[METAL] Command buffer execution failed: Caused GPU Timeout Error"
            raise RuntimeError(message)
        return self._model(inputs, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class _FailingVocabulary(Vocabulary):
    """The real one, which fails where the text of a bad token is asked for, and once after a time."""

    calls_left = 0

    def raw(self, token: int) -> bytes:
        """Return a token's bytes."""
        self.calls_left -= 1
        if token == _BAD or self.calls_left == 0:
            message = "no such piece"
            raise LookupError(message)
        return super().raw(token)


def _engine(loaded: LoadedModel, **options: Any) -> tuple[DrivenEngine, _FailingModel]:
    model: Any = _FailingModel(loaded.model, **options)
    return DrivenEngine(dataclasses.replace(loaded, model=model), room=1 << 30), model


def _submit_innocents(engine: DrivenEngine) -> None:
    for request_id in _INNOCENTS:
        engine.submit(request_id, max_tokens=60, logprobs=request_id == 1)


@pytest.fixture(scope="module")
def undisturbed(loaded: LoadedModel) -> list[str]:
    """The texts of the innocents alone."""
    engine = DrivenEngine(loaded, room=1 << 30)
    _submit_innocents(engine)
    engine.step(1000)
    return [engine.text(request_id) for request_id in _INNOCENTS]


def _assert_spared(engine: DrivenEngine, undisturbed: list[str]) -> None:
    assert undisturbed == [engine.text(request_id) for request_id in _INNOCENTS]
    assert [["length"]] * 3 == [engine.ends(request_id) for request_id in _INNOCENTS]
    assert engine.scheduler.idle
    assert (0, 0) == (engine.guard.ledger.reserved_bytes, len(engine.guard.ledger))


@pytest.mark.parametrize("culprit", _CULPRITS)
@pytest.mark.parametrize("earlier", [0, 20])
def test_the_cause_of_a_failed_step_ends_alone(
    loaded: LoadedModel, undisturbed: list[str], culprit: dict[str, Any], earlier: int
) -> None:
    """Once, with an error, whether it fails in prefill or in decode; those beside it have the text
    of an undisturbed run.
    """
    engine, _ = _engine(loaded)
    _submit_innocents(engine)
    engine.step(earlier)
    engine.submit(9, max_tokens=60, **culprit)
    engine.step(1000)
    assert ["RuntimeError"] == engine.ends(9)
    assert 0 == engine.steps[-1].figures.preemptions  # they began again, but memory was not short
    _assert_spared(engine, undisturbed)


def test_several_causes_end_one_by_one(loaded: LoadedModel, undisturbed: list[str]) -> None:
    """Each with an error of its own, after a bounded number of failures."""
    engine, model = _engine(loaded)
    for number, culprit in enumerate(_CULPRITS):
        engine.submit(10 + number, max_tokens=60, **culprit)
    _submit_innocents(engine)
    for number, culprit in enumerate(_CULPRITS):
        engine.submit(20 + number, max_tokens=60, n=2, **culprit)
    engine.step(2000)
    assert [["RuntimeError"]] * 6 == [engine.ends(each) for each in (10, 11, 12, 20, 21, 22)]
    assert model.failures <= 2 + 2 * 6
    _assert_spared(engine, undisturbed)


@pytest.mark.parametrize("culprit", _CULPRITS)
def test_a_lone_request_that_fails_twice_ends(
    loaded: LoadedModel, undisturbed: list[str], culprit: dict[str, Any]
) -> None:
    """Nobody else could be the cause; and the engine is there for what comes next."""
    engine, model = _engine(loaded)
    engine.submit(9, max_tokens=60, n=2, **culprit)
    engine.step(100)
    assert (["RuntimeError"], 2) == (engine.ends(9), model.failures)
    _submit_innocents(engine)
    engine.step(1000)
    _assert_spared(engine, undisturbed)


@pytest.mark.parametrize("scored", [False, True])
def test_an_error_of_one_requests_text_ends_that_request(
    loaded: LoadedModel, undisturbed: list[str], *, scored: bool
) -> None:
    """Also where it comes after the step, with its text or its log probabilities."""
    engine = DrivenEngine(loaded, room=1 << 30, vocabulary=_FailingVocabulary(loaded.tokenizer))
    _submit_innocents(engine)
    engine.step(20)
    engine.submit(9, max_tokens=60, logprobs=scored, **_GENERATED)
    engine.step(1000)
    assert ["LookupError"] == engine.ends(9)
    assert not engine.tokens(9)
    _assert_spared(engine, undisturbed)


@pytest.mark.parametrize("calls", [1, 5, 100])
def test_an_error_of_a_text_that_happens_once_changes_no_text(
    loaded: LoadedModel, undisturbed: list[str], calls: int
) -> None:
    """The token whose text failed is taken again, and counted once."""
    vocabulary = _FailingVocabulary(loaded.tokenizer)
    engine = DrivenEngine(loaded, room=1 << 30, vocabulary=vocabulary)
    vocabulary.calls_left = calls
    _submit_innocents(engine)
    engine.step(1000)
    assert vocabulary.calls_left < 0
    finishes = [event for event in engine.events if isinstance(event, Finish)]
    assert [60] * 3 == [finish.completion_tokens for finish in finishes]
    _assert_spared(engine, undisturbed)


def test_what_arrives_meanwhile_waits_until_the_cause_is_found(
    loaded: LoadedModel, undisturbed: list[str]
) -> None:
    """It is served then, though it has the same tenant, and what left on trial holds nobody up."""
    engine, model = _engine(loaded)
    _submit_innocents(engine)
    engine.submit(9, max_tokens=60, **_IN_PROMPT)
    while model.failures < 2:
        engine.step(1)
    engine.submit(4, max_tokens=10)
    engine.step(1)
    assert 1 == engine.steps[-1].running
    trial = engine.scheduler._suspects.on_trial
    assert trial is not None
    assert 1 == trial.id
    engine.items.put(Cancel(1))
    engine.step(1000)
    assert [["cancelled"], ["length"]] == [engine.ends(each) for each in (1, 4)]
    assert ["RuntimeError"] == engine.ends(9)
    assert undisturbed[1:] == [engine.text(request_id) for request_id in (2, 3)]


def test_steps_that_fail_in_company_only_come_to_an_end(
    loaded: LoadedModel, undisturbed: list[str]
) -> None:
    """Nobody is the cause, so nobody ends for it; what has passed its trial goes further each time."""
    engine, model = _engine(loaded, rows=1)
    _submit_innocents(engine)
    engine.step(3000)
    assert model.failures < 60
    _assert_spared(engine, undisturbed)


def test_failures_after_which_all_went_well_are_forgotten(loaded: LoadedModel) -> None:
    """Nothing is kept of a request that has ended."""
    engine, _ = _engine(loaded)
    _submit_innocents(engine)
    engine.submit(9, max_tokens=60, **_LAST_OF_PROMPT)
    engine.step(1000)
    assert {} == engine.scheduler._suspects._failures
    assert 4 == len([each for each in engine.events if isinstance(each, Failed | Finish)])


def test_streams_beside_a_request_that_fails_go_on(tmp_path: Path) -> None:
    """In a real engine, which is not started again for it."""
    options = engine_options(
        write_dangerous_model(tmp_path / "dangerous"), trust_remote_code=True, prefill_step=64
    )
    client = start_engine(options, max_batch=8, max_queue=8)
    try:
        assert client.wait_ready(15), client.down_reason
        prompts = [f"innocent {number}" for number in range(3)]
        expected = [generate(client, prompt, max_tokens=400).text() for prompt in prompts]
        texts = [""] * 3

        def stream(number: int) -> None:
            with client.submit(TextPrompt(prompts[number]), GREEDY, max_tokens=400) as generation:
                texts[number] = collect(generation).text()

        threads = [threading.Thread(target=stream, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: client.snapshot().running == 3)
        with pytest.raises(EngineFailureError):
            generate(client, f"fail {FAILS}")
        for thread in threads:
            thread.join(15)
        assert expected == texts
        assert 0 == client.restarts
        wait_until_idle(client)
    finally:
        client.close()
