"""Filters over a large vocabulary on the CPU: fewer tokens are sorted, the draws stay true."""

from __future__ import annotations

import math
from collections import Counter
from typing import cast

import mlx.core as mx

from mlx_pharos.engine.protocol import Sampling
from mlx_pharos.engine.worker.sampling import Draws, sample

_VOCABULARY = 6000
_PEAKED = Sampling(temperature=1.0, top_p=0.9)


def _logprobs(sharpness: float) -> mx.array:
    """One row whose tokens are in no order; sharp ones have few likely tokens."""
    ranks = mx.arange(_VOCABULARY) * 7 % _VOCABULARY  # 7 and the vocabulary have no common factor
    logits = -mx.array(sharpness) * mx.log1p(ranks.astype(mx.float32))
    return (logits - mx.logsumexp(logits))[None]


def _rows(count: int, sampling: Sampling) -> list[Draws]:
    return [
        Draws(
            Sampling(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                seed=seed,
            ),
            choice=0,
            vocabulary_size=_VOCABULARY,
        )
        for seed in range(count)
    ]


def _kept(logprobs: mx.array, sampling: Sampling) -> dict[int, float]:
    """Return the probabilities of the tokens that the filters leave, by counting them."""
    values = [math.exp(value) for value in cast("list[list[float]]", logprobs.tolist())[0]]
    order = sorted(range(_VOCABULARY), key=lambda token: -values[token])
    kept: dict[int, float] = {}
    mass = 0.0
    for rank, token in enumerate(order):
        likely = values[token] >= sampling.min_p * values[order[0]]
        if mass < sampling.top_p and likely and rank < (sampling.top_k or _VOCABULARY):
            kept[token] = values[token]
        mass += values[token]
    total = sum(kept.values())
    return {token: value / total for token, value in kept.items()}


def _statistic(logprobs: mx.array, sampling: Sampling, draws: int) -> tuple[float, int]:
    """Return chi-square of draws against the truth, and its degrees of freedom."""
    rows = _rows(draws, sampling)
    tokens = cast("list[int]", sample(mx.repeat(logprobs, draws, axis=0), rows).tolist())
    expected = _kept(logprobs, sampling)
    counts = Counter(tokens)
    assert set(counts) <= set(expected)
    return (
        sum((counts[token] - draws * p) ** 2 / (draws * p) for token, p in expected.items()),
        len(expected) - 1,
    )


def test_draws_among_candidates_follow_the_filtered_distribution() -> None:
    """What top-p, top-k and min-p leave is drawn as often as its probability says."""
    for sampling in (_PEAKED, Sampling(top_k=20), Sampling(min_p=0.02)):
        statistic, degrees = _statistic(_logprobs(2.0), sampling, 600)
        assert degrees > 1
        assert statistic < degrees + 5 * math.sqrt(2 * degrees)  # the seeds are fixed


def test_a_row_with_more_than_the_candidates_draws_from_all_that_its_filters_leave() -> None:
    """Where thousands of tokens are likely, tokens beyond the candidates are drawn too."""
    flat = _logprobs(0.1)
    expected = _kept(flat, _PEAKED)
    assert len(expected) > 3000
    tokens = sample(mx.repeat(flat, 200, axis=0), _rows(200, _PEAKED))
    drawn = set(cast("list[int]", tokens.tolist()))
    assert drawn <= set(expected)
    ranks = sorted(expected, key=lambda token: -expected[token])
    assert drawn & set(ranks[2000:])


def test_a_row_draws_the_same_beside_rows_that_need_the_whole_vocabulary() -> None:
    """Greedy, unfiltered, flat and peaked rows in one batch draw what each draws alone."""
    logprobs = [_logprobs(2.0), _logprobs(0.1), _logprobs(2.0), _logprobs(2.0)]
    kinds = [_PEAKED, _PEAKED, Sampling(temperature=0.0), Sampling(temperature=1.0)]

    def rows() -> list[Draws]:
        return [_rows(place + 1, kind)[place] for place, kind in enumerate(kinds)]

    alone = [sample(row, [draw]).item() for row, draw in zip(logprobs, rows(), strict=True)]
    assert alone == sample(mx.concatenate(logprobs), rows()).tolist()
