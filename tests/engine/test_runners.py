"""The runners against mlx-lm's own single-sequence generation."""

from __future__ import annotations

import gc
import itertools
import weakref
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step

from mlx_pharos.engine.protocol import Sampling
from mlx_pharos.engine.worker.batch import BatchRunner
from mlx_pharos.engine.worker.runner import Job, Runner, RunnerSize, SampledToken, StoredPrefix
from mlx_pharos.engine.worker.sampling import Draws, make_processors
from mlx_pharos.engine.worker.sequential import SequentialRunner

if TYPE_CHECKING:
    from mlx_pharos.engine.models.loading import LoadedModel

_PROMPTS = [[65 + (7 * index + step) % 40 for step in range(3 + 40 * index)] for index in range(4)]


def _batch(loaded: LoadedModel, **options: Any) -> BatchRunner:
    bounds: dict[str, Any] = {"size": RunnerSize(4, 16, 2), "wired_limit": False}
    return BatchRunner(loaded.model, eos_token_ids=(), **(bounds | options))


def _sequential(loaded: LoadedModel) -> SequentialRunner:
    return SequentialRunner(loaded.model, eos_token_ids=(), prefill_step=16)


def _job(
    loaded: LoadedModel,
    prompt: list[int],
    *,
    max_tokens: int = 20,
    sampling: Sampling | None = None,
    prefix: StoredPrefix | None = None,
    scored: bool = False,
) -> Job:
    sampling = sampling or Sampling(temperature=0.0)
    return Job(
        prefix=prefix,
        rest=prompt[len(prefix.tokens) if prefix else 0 :],
        max_tokens=max_tokens,
        draws=Draws(sampling, choice=0, vocabulary_size=loaded.vocabulary_size),
        processors=make_processors(sampling, prompt_tokens=len(prompt)),
        scored=scored,
    )


def _reference(loaded: LoadedModel, prompt: list[int], max_tokens: int = 20) -> list[int]:
    steps = generate_step(
        mx.array(prompt),
        loaded.model,
        max_tokens=max_tokens,
        stream=mx.default_stream(mx.default_device()),
    )
    return [cast("int", token) for token, _ in steps]


def _drain(runner: Runner, keys: list[int]) -> dict[int, list[int]]:
    tokens: dict[int, list[int]] = {key: [] for key in keys}
    running = set(keys)
    while running:
        for sample in runner.step().sampled:
            tokens[sample.key].append(sample.token)
            if sample.finish:
                running.discard(sample.key)
    return tokens


def test_batch_gives_the_tokens_of_single_sequences(loaded: LoadedModel) -> None:
    """Prompts of different lengths, joined at different times."""
    runner = _batch(loaded)
    keys = [runner.insert(_job(loaded, prompt)) for prompt in _PROMPTS[:2]]
    first = [sample for _ in range(6) for sample in runner.step().sampled]
    keys += [runner.insert(_job(loaded, prompt)) for prompt in _PROMPTS[2:]]
    tokens = _drain(runner, keys)
    for sample in reversed(first):
        tokens[sample.key].insert(0, sample.token)
    assert [_reference(loaded, prompt) for prompt in _PROMPTS] == [tokens[key] for key in keys]


def test_sequential_gives_the_tokens_of_single_sequences(loaded: LoadedModel) -> None:
    """One after the other through the same runner."""
    runner = _sequential(loaded)
    for prompt in _PROMPTS:
        key = runner.insert(_job(loaded, prompt))
        assert _reference(loaded, prompt) == _drain(runner, [key])[key]


def test_both_runners_agree_on_sampling_and_penalties(loaded: LoadedModel) -> None:
    """Seed, filters and penalties do not depend on how a model is run."""
    sampling = Sampling(
        temperature=0.9,
        top_p=0.9,
        seed=11,
        repetition_penalty=1.2,
        presence_penalty=0.3,
        frequency_penalty=0.2,
    )
    batch, sequential = _batch(loaded), _sequential(loaded)
    keys = [batch.insert(_job(loaded, prompt, sampling=sampling)) for prompt in _PROMPTS]
    together = _drain(batch, keys)
    for key, prompt in zip(keys, _PROMPTS, strict=True):
        own = sequential.insert(_job(loaded, prompt, sampling=sampling))
        assert together[key] == _drain(sequential, [own])[own]


def test_log_probabilities_are_those_of_a_row_that_asked(loaded: LoadedModel) -> None:
    """Beside rows that did not, joined early or late, a row's scores are what they are alone."""
    alone, batch = _sequential(loaded), _batch(loaded)
    key = alone.insert(_job(loaded, _PROMPTS[2], scored=True))
    truth = _scores(alone, key)
    batch.insert(_job(loaded, _PROMPTS[0], max_tokens=40))
    batch.step()
    batch.insert(_job(loaded, _PROMPTS[1], max_tokens=8))
    asked = batch.insert(_job(loaded, _PROMPTS[2], scored=True))
    found = _scores(batch, asked)
    assert 20 == len(truth) == len(found)
    for (token, scores), (own_token, own) in zip(truth, found, strict=True):
        assert token == own_token
        assert mx.allclose(scores, own, atol=1e-5).item()


def _scores(runner: Runner, key: int) -> list[tuple[int, mx.array]]:
    scores: list[tuple[int, mx.array]] = []
    while True:
        for sample in runner.step().sampled:
            if sample.key == key:
                assert sample.logprobs is not None
                scores.append((sample.token, sample.logprobs))
                if sample.finish:
                    return scores


@pytest.mark.parametrize("make", [_batch, _sequential])
def test_removed_job_leaves_the_others_alone(loaded: LoadedModel, make: Any) -> None:
    """In prefill or decode, its neighbours' tokens stay what they were."""
    runner: Runner = make(loaded)
    doomed = runner.insert(_job(loaded, _PROMPTS[3]))
    runner.step()
    if runner.size.batch > 1:
        other = runner.insert(_job(loaded, _PROMPTS[1]))
        runner.step()
        runner.remove(doomed)
    else:
        runner.remove(doomed)
        other = runner.insert(_job(loaded, _PROMPTS[1]))
    assert _reference(loaded, _PROMPTS[1]) == _drain(runner, [other])[other]


@pytest.mark.parametrize("make", [_batch, _sequential])
def test_stored_prefix_continues_to_the_same_tokens(loaded: LoadedModel, make: Any) -> None:
    """KV state extracted after prefill stands for exactly the tokens that it names."""
    runner: Runner = make(loaded)
    prompt = _PROMPTS[2]
    key = runner.insert(_job(loaded, prompt))
    while not any(chunk.prompt_in_cache for chunk in runner.step().prefilled):
        pass
    stored = runner.extract(key)
    assert stored is not None
    assert prompt[:-1] == stored.tokens
    runner.remove(key)
    again = runner.insert(_job(loaded, prompt, prefix=stored))
    assert _reference(loaded, prompt) == _drain(runner, [again])[again]


@pytest.mark.parametrize("end", ["length", "removed"])
@pytest.mark.parametrize("make", [_batch, _sequential])
def test_the_state_of_a_job_goes_with_it(loaded: LoadedModel, make: Any, end: str) -> None:
    """However it ended: KV state that nobody stores is gone before the next job comes."""
    runner: Runner = make(loaded)
    key = runner.insert(_job(loaded, _PROMPTS[0], max_tokens=3))
    while not runner.step().sampled:
        pass
    layers = [weakref.ref(layer) for layer in runner.kv_layers()]
    if end == "removed":
        runner.remove(key)
    else:
        _drain(runner, [key])
    gc.collect()
    held = [layer() for layer in layers]
    assert 0 == sum(layer.nbytes for layer in held if layer is not None)


def test_prefill_never_takes_more_than_a_chunk_per_step(loaded: LoadedModel) -> None:
    """A step of the batch prefills at most its bound of each prompt in turn."""
    runner = _batch(loaded)
    key = runner.insert(_job(loaded, [66] * 100))
    processed = [0]
    while not (chunks := runner.step()).sampled:
        processed += [chunk.processed for chunk in chunks.prefilled]
    assert [16] * 6 + [3] == [after - before for before, after in itertools.pairwise(processed)]
    runner.remove(key)


def test_a_chunk_is_bounded_by_its_tokens(loaded: LoadedModel) -> None:
    """Many short prompts share a chunk, few long ones do; each is worked off, and in its turn."""
    lengths = [3, 5, 4, 90, 2, 2, 40, 7, 1, 30, 30, 6, 8, 5, 3, 2]
    runner = _batch(loaded, size=RunnerSize(16, 16, 2))
    keys = [runner.insert(_job(loaded, [66 + place] * n)) for place, n in enumerate(lengths)]
    done = dict.fromkeys(keys, 0)
    widths = []
    waiting = {key for key, n in zip(keys, lengths, strict=True) if n > 1}
    while waiting:
        chunks = runner.step().prefilled
        sizes = [chunk.processed - done[chunk.key] for chunk in chunks]
        done.update((chunk.key, chunk.processed) for chunk in chunks)
        waiting -= {chunk.key for chunk in chunks if chunk.prompt_in_cache}
        assert len(sizes) * max(sizes, default=0) <= 16 * 2
        widths.append(len(sizes))
    assert max(widths) > 2
    assert [n - 1 for n in lengths] == [done[key] for key in keys]
    assert widths[0] == 3  # the fourth would make it a chunk of 4 x 16


def test_a_smaller_bound_holds_at_once(loaded: LoadedModel) -> None:
    """Prompts that shared a large chunk share small ones after a shrink, and lose no token."""
    runner = _batch(loaded, size=RunnerSize(8, 32, 4))
    prompts = [[66 + place, *[70 + place] * 120] for place in range(4)]
    keys = [runner.insert(_job(loaded, prompt)) for prompt in prompts]
    done = {chunk.key: chunk.processed for chunk in runner.step().prefilled}
    assert dict.fromkeys(keys, 32) == done
    runner.resize(RunnerSize(4, 16, 1))
    step = runner.step()
    assert [4] * 4 == [chunk.processed - done[chunk.key] for chunk in step.prefilled]
    runner.resize(RunnerSize(8, 32, 4))
    tokens = _drain(runner, keys)
    assert [_reference(loaded, prompt) for prompt in prompts] == [tokens[key] for key in keys]


def test_end_of_sequence_token_ends_a_job(loaded: LoadedModel) -> None:
    """Both runners stop at it and say so."""
    eos = _reference(loaded, _PROMPTS[0])[5]
    position = _reference(loaded, _PROMPTS[0]).index(eos)
    for runner in (
        BatchRunner(
            loaded.model,
            eos_token_ids=(eos,),
            size=RunnerSize(batch=2, prefill_step=16, prefill_rows=1),
            wired_limit=False,
        ),
        SequentialRunner(loaded.model, eos_token_ids=(eos,), prefill_step=16),
    ):
        runner.insert(_job(loaded, _PROMPTS[0]))
        samples: list[SampledToken] = []
        while not samples or not samples[-1].finish:
            samples += runner.step().sampled
        assert (position + 1, "stop") == (len(samples), samples[-1].finish)
