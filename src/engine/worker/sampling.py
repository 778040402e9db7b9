"""How sequences draw their next tokens: penalties, filters, temperature, own randomness."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import mlx.core as mx
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..protocol import Sampling

__all__ = ["Draws", "Processor", "make_processors", "sample"]

Processor = Callable[[mx.array, mx.array], mx.array]
"""Takes all tokens so far, shape (tokens,), and logits, shape (1, vocabulary)."""

_Filter = tuple[float, float, int]
_NO_FILTER: _Filter = (1.0, 0.0, 0)
_MASK = (1 << 64) - 1


class Draws:
    """The random draws of one sequence, one per position.

    A draw's key is derived from seed, choice and position and from nothing
    else. The same seed therefore gives the same text whatever else is in the
    batch, and a sequence can go on at any position.
    """

    def __init__(
        self, sampling: Sampling, *, choice: int, vocabulary_size: int, position: int = 0
    ) -> None:
        self.temperature = sampling.temperature
        top_k = sampling.top_k if sampling.top_k < vocabulary_size else 0
        self.filter: _Filter = (sampling.top_p, sampling.min_p, top_k)
        if self.temperature == 0:
            self.filter = _NO_FILTER  # no filter removes the most likely token
        self._stream = _mix(sampling.seed ^ _mix(choice))
        self._position = position

    def next_key(self) -> tuple[int, int]:
        """Return the key of this position, in MLX's form of two 32-bit words, and move on."""
        key = _mix(self._stream + self._position)
        self._position += 1
        return key >> 32, key & 0xFFFFFFFF


def sample(logprobs: mx.array, rows: Sequence[Draws]) -> mx.array:
    """Draw one token per row: a few operations for the batch, not a few per row.

    Args:
        logprobs: Shape (rows, vocabulary).
        rows: Whose turn it is in each row.

    Returns:
        Token ids, shape (rows,).
    """
    if all(row.temperature == 0 for row in rows):
        return mx.argmax(logprobs, axis=-1)
    filtered = _filter_rows(logprobs, [row.filter for row in rows])
    # A greedy row is scaled by 1 here and replaced below.
    scales = mx.array([[1.0 / (row.temperature or 1.0)] for row in rows])
    keys = mx.array([row.next_key() for row in rows], dtype=mx.uint32)
    drawn = _categorical_rows(filtered * scales, keys)
    if any(row.temperature == 0 for row in rows):
        greedy = mx.array([row.temperature == 0 for row in rows])
        drawn = mx.where(greedy, mx.argmax(logprobs, axis=-1), drawn)
    return drawn


def _categorical(logits: mx.array, key: mx.array) -> mx.array:
    return mx.random.categorical(logits, key=key)


_categorical_rows = mx.vmap(_categorical)


def _filter_rows(logprobs: mx.array, filters: list[_Filter]) -> mx.array:
    """Filter row by row only where the rows differ."""
    first = filters[0]
    if all(other == first for other in filters):
        return _filter(logprobs, first)
    rows = [_filter(logprobs[index : index + 1], each) for index, each in enumerate(filters)]
    return mx.concatenate(rows, axis=0)


def _filter(logprobs: mx.array, parameters: _Filter) -> mx.array:
    """Apply the filters in mlx-lm's order: top-p, min-p, top-k."""
    top_p, min_p, top_k = parameters
    if top_p < 1.0:
        # 0 means "only the most likely token", which the smallest mass is.
        logprobs = apply_top_p(logprobs, max(top_p, 1e-9))
    if min_p > 0.0:
        logprobs = apply_min_p(logprobs, min_p)
    if top_k > 0:
        logprobs = apply_top_k(logprobs, top_k)
    return logprobs


def make_processors(sampling: Sampling, *, prompt_tokens: int) -> tuple[Processor, ...]:
    """Return the logit processors of one sequence, in the order in which they apply.

    Args:
        sampling: What the request asked for.
        prompt_tokens: Where the answer begins: OpenAI's presence and frequency
            penalties look at the answer only, the repetition penalty at both.
    """
    processors: list[Processor] = []
    if sampling.logit_bias:
        processors.append(_logit_bias(sampling.logit_bias))
    if sampling.repetition_penalty != 1.0:
        processors.append(_repetition(sampling.repetition_penalty))
    if sampling.presence_penalty != 0.0:
        processors.append(_presence(sampling.presence_penalty, prompt_tokens))
    if sampling.frequency_penalty != 0.0:
        processors.append(_frequency(sampling.frequency_penalty, prompt_tokens))
    return tuple(processors)


def _logit_bias(bias: tuple[tuple[int, float], ...]) -> Processor:
    tokens = mx.array([token for token, _ in bias])
    values = mx.array([value for _, value in bias])

    def process(_: mx.array, logits: mx.array) -> mx.array:
        return logits.at[:, tokens].add(values)

    return process


def _repetition(penalty: float) -> Processor:
    """CTRL's penalty (Keskar et al. 2019, section 4.1), over the whole sequence."""

    def process(tokens: mx.array, logits: mx.array) -> mx.array:
        seen = logits[:, tokens]
        logits[:, tokens] = mx.where(seen < 0, seen * penalty, seen / penalty)
        return logits

    return process


def _presence(penalty: float, prompt_tokens: int) -> Processor:
    def process(tokens: mx.array, logits: mx.array) -> mx.array:
        answer = tokens[prompt_tokens:]
        if answer.size:
            logits[:, answer] = logits[:, answer] - penalty
        return logits

    return process


def _frequency(penalty: float, prompt_tokens: int) -> Processor:
    def process(tokens: mx.array, logits: mx.array) -> mx.array:
        answer = tokens[prompt_tokens:]
        if answer.size:
            logits = logits.at[:, answer].subtract(penalty)  # adds up over repeated ids
        return logits

    return process


def _mix(value: int) -> int:
    """Spread a 64-bit integer over all its bits (SplitMix64's finalizer, Steele et al. 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
