"""Log probabilities for the sequences that ask for them: one evaluation per step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from ..protocol import TokenLogprob, TopLogprob

if TYPE_CHECKING:
    from .vocabulary import Vocabulary

__all__ = ["LogprobRequest", "read_logprobs"]

_LOWEST = -9999.0
"""What OpenAI sends for a token that is out of reach; JSON has no minus infinity."""

LogprobRequest = tuple[int, mx.array, int]
"""Token id, log probabilities of shape (vocabulary,), number of alternatives."""


def read_logprobs(wanted: list[LogprobRequest], vocabulary: Vocabulary) -> list[TokenLogprob]:
    """Return the log probability of each token, with its most likely alternatives first."""
    if not wanted:
        return []
    rows = mx.stack([row for _, row, _ in wanted]).astype(mx.float32)
    chosen = mx.take_along_axis(rows, mx.array([[token] for token, _, _ in wanted]), axis=-1)
    width = min(max(top for _, _, top in wanted), rows.shape[-1])
    if not width:
        mx.eval(chosen)
        return [
            _entry(token, value, (), vocabulary)
            for (token, _, _), (value,) in zip(wanted, chosen.tolist(), strict=True)
        ]
    best = mx.argsort(-rows, axis=-1)[:, :width]
    values = mx.take_along_axis(rows, best, axis=-1)
    mx.eval(chosen, best, values)
    entries = []
    for (token, _, top), (value,), ids, logprobs in zip(
        wanted, chosen.tolist(), best.tolist(), values.tolist(), strict=True
    ):
        alternatives = tuple(
            TopLogprob(
                other, _text(other, vocabulary), vocabulary.raw(other), max(logprob, _LOWEST)
            )
            for other, logprob in zip(ids[:top], logprobs[:top], strict=True)
        )
        entries.append(_entry(token, value, alternatives, vocabulary))
    return entries


def _entry(
    token: int, logprob: float, top: tuple[TopLogprob, ...], vocabulary: Vocabulary
) -> TokenLogprob:
    raw = vocabulary.raw(token)
    return TokenLogprob(token, _text(token, vocabulary), raw, max(logprob, _LOWEST), top)


def _text(token: int, vocabulary: Vocabulary) -> str:
    return vocabulary.raw(token).decode("utf-8", "replace")
