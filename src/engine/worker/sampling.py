"""How a sequence draws its next token: penalties, filters, temperature, and its own randomness."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import mlx.core as mx
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p, greedy_sampler

if TYPE_CHECKING:
    from ..protocol import Sampling

__all__ = ["Processor", "Sampler", "SeededSampler", "make_processors", "make_sampler"]

Sampler = Callable[[mx.array], mx.array]
Processor = Callable[[mx.array, mx.array], mx.array]

_MASK = (1 << 64) - 1


def make_sampler(sampling: Sampling, *, choice: int, vocabulary_size: int) -> Sampler:
    """Return the sampler of one sequence.

    Greedy sequences share one sampler, so that a batch of them is one
    operation; the others draw from a stream of their own.
    """
    if sampling.temperature == 0:
        return greedy_sampler  # type: ignore[no-any-return]
    return SeededSampler(sampling, choice=choice, vocabulary_size=vocabulary_size)


class SeededSampler:
    """Draws from a key derived from seed, choice and position, and from nothing else.

    The same seed therefore gives the same text whatever else is in the batch,
    and a sequence can go on at any position. Called once per position.
    """

    def __init__(
        self, sampling: Sampling, *, choice: int, vocabulary_size: int, position: int = 0
    ) -> None:
        self._scale = 1.0 / sampling.temperature
        self._filters = _filters(sampling, vocabulary_size)
        self._stream = _mix(sampling.seed ^ _mix(choice))
        self._position = position

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Draw one token from log probabilities of shape (1, vocabulary)."""
        for apply in self._filters:
            logprobs = apply(logprobs)
        key = mx.random.key(_mix(self._stream + self._position))
        self._position += 1
        return mx.random.categorical(logprobs * self._scale, key=key)


def make_processors(
    sampling: Sampling, *, prompt_tokens: int
) -> tuple[Processor, ...]:
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


def _filters(sampling: Sampling, vocabulary_size: int) -> list[Callable[[mx.array], mx.array]]:
    """The order is mlx-lm's: top-p, min-p, top-k."""
    filters: list[Callable[[mx.array], mx.array]] = []
    top_p, min_p, top_k = sampling.top_p, sampling.min_p, sampling.top_k
    if top_p < 1.0:
        # top_p 0 means "only the most likely token", which the smallest positive mass is.
        mass = max(top_p, 1e-9)
        filters.append(lambda logprobs: apply_top_p(logprobs, mass))
    if min_p > 0.0:
        filters.append(lambda logprobs: apply_min_p(logprobs, min_p))
    if 0 < top_k < vocabulary_size:
        filters.append(lambda logprobs: apply_top_k(logprobs, top_k))
    return filters


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
