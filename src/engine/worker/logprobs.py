"""Log probabilities for the sequences that ask for them: one evaluation per step."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import mlx.core as mx

from ..protocol import TokenLogprob, TopLogprob

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .runner import SampledToken
    from .sequence import Sequence
    from .vocabulary import Vocabulary

__all__ = ["LogprobRequest", "read_logprobs", "step_logprobs"]

_LOWEST = -9999.0
"""What OpenAI sends for a token that is out of reach; JSON has no minus infinity."""

LogprobRequest = tuple[int, mx.array, int, int]
"""Token id, log probabilities of shape (vocabulary,), number of alternatives, characters before."""


def read_logprobs(wanted: list[LogprobRequest], vocabulary: Vocabulary) -> list[TokenLogprob]:
    """Return the log probability of each token, with its most likely alternatives first."""
    if not wanted:
        return []
    rows = mx.stack([row for _, row, *_ in wanted]).astype(mx.float32)
    chosen = mx.take_along_axis(rows, mx.array([[token] for token, *_ in wanted]), axis=-1)
    width = min(max(top for _, _, top, _ in wanted), rows.shape[-1])
    best: list[list[int]] = [[] for _ in wanted]
    values: list[list[float]] = [[] for _ in wanted]
    if width:
        order = mx.argsort(-rows, axis=-1)[:, :width]
        best = cast("list[list[int]]", order.tolist())
        values = cast("list[list[float]]", mx.take_along_axis(rows, order, axis=-1).tolist())
    own = cast("list[list[float]]", chosen.tolist())
    return [
        _entry(
            token,
            own[index][0],
            _alternatives(best[index][:top], values[index][:top], vocabulary),
            begin,
            vocabulary,
        )
        for index, (token, _, top, begin) in enumerate(wanted)
    ]


def step_logprobs(
    samples: Iterable[SampledToken], running: Mapping[int, Sequence], vocabulary: Vocabulary
) -> dict[int, TokenLogprob]:
    """Return the log probabilities of a step's tokens where they were asked for, by runner's key."""
    wanted: dict[int, LogprobRequest] = {}
    for sample in samples:
        sequence = running[sample.key]
        submit = sequence.request.submit
        if submit.logprobs and sample.finish != "stop":
            scores = cast("mx.array", sample.logprobs)  # its job asked for them
            wanted[sample.key] = (
                sample.token,
                scores,
                submit.top_logprobs,
                sequence.assembler.length,
            )
    if not wanted:
        return {}
    entries = read_logprobs(list(wanted.values()), vocabulary)
    return dict(zip(wanted, entries, strict=True))


def _alternatives(
    tokens: list[int], logprobs: list[float], vocabulary: Vocabulary
) -> tuple[TopLogprob, ...]:
    return tuple(
        TopLogprob(token, _text(token, vocabulary), vocabulary.raw(token), max(logprob, _LOWEST))
        for token, logprob in zip(tokens, logprobs, strict=True)
    )


def _entry(
    token: int, logprob: float, top: tuple[TopLogprob, ...], begin: int, vocabulary: Vocabulary
) -> TokenLogprob:
    raw = vocabulary.raw(token)
    return TokenLogprob(token, _text(token, vocabulary), raw, max(logprob, _LOWEST), top, begin)


def _text(token: int, vocabulary: Vocabulary) -> str:
    return vocabulary.raw(token).decode("utf-8", "replace")
