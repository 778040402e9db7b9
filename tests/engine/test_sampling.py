"""Sampling: what each parameter does to the next token."""

from __future__ import annotations

import math
from collections import Counter
from typing import cast

import mlx.core as mx
import pytest

from mlx_pharos.engine.protocol import Sampling
from mlx_pharos.engine.worker import sampling as sampling_module
from mlx_pharos.engine.worker.sampling import Draws, make_processors, sample

_VOCABULARY = 12


def _logprobs(rows: int = 1) -> mx.array:
    logits = mx.array([[float(token) / 3 for token in range(_VOCABULARY)]] * rows)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _draws(sampling: Sampling, *, choice: int = 0, position: int = 0) -> Draws:
    return Draws(sampling, choice=choice, vocabulary_size=_VOCABULARY, position=position)


def _draw(sampling: Sampling, times: int) -> list[int]:
    draws = _draws(sampling)
    return [_one(draws) for _ in range(times)]


def _one(draws: Draws) -> int:
    return cast("int", sample(_logprobs(), [draws]).item())


def test_temperature_zero_takes_the_most_likely_token() -> None:
    """Greedy is greedy, whatever filters say."""
    assert [11] * 3 == _draw(Sampling(temperature=0.0, top_p=0.1, min_p=0.9, top_k=1), 3)


def test_a_row_draws_the_same_whatever_else_is_in_the_batch() -> None:
    """Seed and position alone decide: alone, in any row, beside greedy and filtered rows."""
    seeded = Sampling(temperature=1.0, seed=42)
    alone = _draw(seeded, 20)
    rows = [
        _draws(Sampling(temperature=0.0)),
        _draws(seeded),
        _draws(Sampling(temperature=2.0, top_p=0.5, seed=1)),
    ]
    together = [sample(_logprobs(3), rows)[1].item() for _ in range(20)]
    assert alone == together


def test_a_sequence_goes_on_at_any_position() -> None:
    """A resumed sequence draws what an undisturbed one draws."""
    seeded = Sampling(temperature=1.0, seed=42)
    resumed = _draws(seeded, position=7)
    assert _draw(seeded, 20)[7:] == [_one(resumed) for _ in range(13)]


def test_choices_and_seeds_have_streams_of_their_own() -> None:
    """Two choices of one request differ, and so do two seeds."""
    streams = {
        tuple(_one(draws) for _ in range(30))
        for draws in [
            _draws(Sampling(seed=1)),
            _draws(Sampling(seed=1), choice=1),
            _draws(Sampling(seed=2)),
        ]
    }
    assert 3 == len(streams)


def test_draws_follow_the_distribution() -> None:
    """The relative frequency of each token is its probability (chi-square, 11 degrees)."""
    draws = 4000
    rows = [_draws(Sampling(seed=seed)) for seed in range(draws)]
    counts = Counter(cast("list[int]", sample(_logprobs(draws), rows).tolist()))
    expected = cast("list[float]", (mx.exp(_logprobs()[0]) * draws).tolist())
    statistic = sum((counts[token] - mean) ** 2 / mean for token, mean in enumerate(expected))
    assert statistic < 31.3  # 0.1 % of true samplers are above; the seeds are fixed


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(top_k=2, temperature=5.0), {10, 11}),
        (Sampling(top_p=1e-6, temperature=5.0), {11}),
        (Sampling(top_p=0.0, temperature=5.0), {11}),
        (Sampling(min_p=0.5, temperature=5.0), {10, 11, 9}),
        (Sampling(top_k=_VOCABULARY + 5), set(range(_VOCABULARY))),
    ],
)
def test_filters_leave_only_likely_tokens(sampling: Sampling, allowed: set[int]) -> None:
    """top_k counts, top_p sums, min_p compares with the best; out of range is off."""
    assert set(_draw(sampling, 60)) <= allowed


def test_filters_keep_the_sets_that_they_name() -> None:
    """Rows with different filters, in one batch, against a plain count of the probabilities."""
    filters = [
        Sampling(top_p=0.5),
        Sampling(min_p=0.3),
        Sampling(top_k=3),
        Sampling(),
        Sampling(top_p=0.9, min_p=0.05, top_k=5),
        Sampling(top_p=0.0),
    ]
    logprobs = _logprobs(len(filters))
    kept = sampling_module._filter_rows(logprobs, [_draws(each).filter for each in filters])
    probabilities = [math.exp(value) for value in cast("list[float]", logprobs[0].tolist())]
    order = sorted(range(_VOCABULARY), key=lambda token: -probabilities[token])
    for row, each in enumerate(filters):
        expected: set[int] = set()
        mass = 0.0
        for rank, token in enumerate(order):
            wanted = (
                (rank == 0 or each.top_p == 1.0 or mass < each.top_p)
                and probabilities[token] >= each.min_p * probabilities[order[0]]
                and (not each.top_k or rank < each.top_k)
            )
            if wanted:
                expected.add(token)
            mass += probabilities[token]
        values = cast("list[float]", kept[row].tolist())
        assert expected == {token for token, value in enumerate(values) if math.isfinite(value)}


@pytest.mark.parametrize("temperature", [1e-6, 1e-39, 5e-324])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    """Dividing by it would leave the range of float32."""
    assert [11] * 3 == _draw(Sampling(temperature=temperature, seed=1), 3)


def _processed(sampling: Sampling, tokens: list[int], prompt_tokens: int) -> list[float]:
    logits = mx.array([[1.0, -1.0, 2.0, 0.5]])
    for process in make_processors(sampling, prompt_tokens=prompt_tokens):
        logits = process(mx.array(tokens), logits)
    return [round(value, 4) for value in cast("list[float]", logits[0].tolist())]


def test_presence_penalty_counts_a_token_of_the_answer_once() -> None:
    """OpenAI's presence penalty looks at the answer, not at the prompt."""
    assert [1.0, -1.5, 2.0, 0.5] == _processed(Sampling(presence_penalty=0.5), [0, 2, 1, 1], 2)


def test_frequency_penalty_counts_every_occurrence_in_the_answer() -> None:
    """OpenAI's frequency penalty grows with each repetition."""
    assert [1.0, -2.0, 2.0, 0.5] == _processed(Sampling(frequency_penalty=0.5), [0, 2, 1, 1], 2)


def test_repetition_penalty_covers_prompt_and_answer() -> None:
    """It divides positive and multiplies negative logits (CTRL)."""
    assert [0.5, -2.0, 2.0, 0.5] == _processed(Sampling(repetition_penalty=2.0), [0, 1, 1], 1)


def test_logit_bias_is_added() -> None:
    """A bias moves exactly the tokens that it names."""
    bias = ((3, 100.0), (2, -100.0))
    assert [1.0, -1.0, -98.0, 100.5] == _processed(Sampling(logit_bias=bias), [0], 1)
