"""Whether a model's requests can share a pass although their lengths differ. Imports mlx.

A pass over several prompts fills the shorter ones up. Attention looks at no
filling. Recurrent state takes everything in, unless the model's code leaves the
filling out, and in mlx-lm some architectures do and some do not: the text of a
request would then depend on its company. So a model with recurrent state is
tried, with its own weights, when it is loaded.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from .cache_layers import is_recurrent

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MISCOMPUTED", "is_paddable"]

_log = logging.getLogger(__name__)

MISCOMPUTED = frozenset({"afm7"})
"""Model types whose batches mlx-lm computes wrongly: this one's last layers count what fills a row
up as positions."""

_SHORT, _LONG = 9, 25
"""Tokens of the two rows that are tried."""
_TOLERANCE = 0.05
"""Of the scores' standard deviation. In half precision rounding makes some of it; filling that
is taken in makes a multiple."""


def is_paddable(model: Any, *, vocabulary_size: int) -> bool:  # noqa: ANN401 - as elsewhere
    """Return whether a short prompt has the same scores beside a long one as alone.

    Args:
        model: Batchable, its weights evaluated.
        vocabulary_size: Ids that its logits cover.
    """
    if not is_recurrent(make_prompt_cache(model)):
        return True
    tokens = [(7919 * place + 65) % vocabulary_size for place in range(_LONG)]
    try:
        alone = _next_scores(model, [tokens[:_SHORT]])
        beside = _next_scores(model, [tokens[:_SHORT], tokens])
    except Exception:  # noqa: BLE001 - the border to mlx-lm's architectures, as when they are loaded
        _log.exception("prompts are computed one by one: two in one pass failed")
        return False
    difference = mx.abs(alone[0] - beside[0]).max()
    paddable = bool((difference <= _TOLERANCE * mx.std(alone[0])).item())
    mx.clear_cache()
    if not paddable:
        _log.warning("prompts are computed one by one: in this model, filling up changes the text")
    return paddable


def _next_scores(model: Any, rows: Sequence[list[int]]) -> mx.array:  # noqa: ANN401
    """Return the logits after each row, shape (rows, vocabulary), in float32.

    All but the last token of each go in as mlx-lm's batch does it: filled up on the right.
    """
    lengths = [len(row) - 1 for row in rows]
    longest = max(lengths)
    filling = [longest - length for length in lengths]
    caches = [make_prompt_cache(model) for _ in rows]
    cache = [layers[0].merge(list(layers)) for layers in zip(*caches, strict=True)]
    if any(filling):
        for layer in cache:
            layer.prepare(lengths=lengths, right_padding=filling)
    # What fills up is as much of a token as any other, so that it shows.
    filled = [row[:-1] + row[:1] * missing for row, missing in zip(rows, filling, strict=True)]
    model(mx.array(filled), cache=cache)
    mx.eval([layer.state for layer in cache])
    if any(filling):
        for layer in cache:
            layer.finalize()
    scores: mx.array = model(mx.array([row[-1:] for row in rows]), cache=cache)[:, -1]
    return scores.astype(mx.float32)
