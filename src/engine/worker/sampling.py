"""How sequences draw their next tokens: penalties, filters, temperature, own randomness."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import mlx.core as mx

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..protocol import Sampling

__all__ = ["Draws", "Processor", "make_processors", "sample"]

Processor = Callable[[mx.array, mx.array], mx.array]
"""Takes all tokens so far, shape (tokens,), and logits, shape (1, vocabulary)."""

_Filter = tuple[float, float, int]
_COLDEST = 1e-5
"""Below it is greedy: the scaled differences would leave the range of float32."""
_NO_FILTER: _Filter = (1.0, 0.0, 0)
_CANDIDATES = 1024
"""The most likely tokens, among which top-p, min-p and top-k nearly always find all that they keep.
On the CPU it takes a tenth of the time of sorting a vocabulary of 49,152 to find them."""
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
        self.temperature = sampling.temperature if sampling.temperature >= _COLDEST else 0.0
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
        logprobs: Shape (rows, vocabulary); the probabilities of a row add up to 1.
        rows: Whose turn it is in each row.

    Returns:
        Token ids, shape (rows,).
    """
    if all(row.temperature == 0 for row in rows):
        return mx.argmax(logprobs, axis=-1)
    keys = mx.array([row.next_key() for row in rows], dtype=mx.uint32)
    filtered = any(row.filter != _NO_FILTER for row in rows)
    if filtered and logprobs.shape[-1] > 2 * _CANDIDATES and mx.default_device() == mx.cpu:
        drawn = _draw_among_candidates(logprobs, rows, keys)
    else:
        drawn = _draw_among_all(logprobs, rows, keys)
    if any(row.temperature == 0 for row in rows):
        greedy = mx.array([row.temperature == 0 for row in rows])
        drawn = mx.where(greedy, mx.argmax(logprobs, axis=-1), drawn)
    return drawn


def _draw_among_all(logprobs: mx.array, rows: Sequence[Draws], keys: mx.array) -> mx.array:
    """Draw from the whole vocabulary. Nothing is evaluated here, so a GPU goes on meanwhile."""
    filtered = _filter_rows(logprobs, [row.filter for row in rows])
    return _categorical_rows(filtered * _scales(rows), keys)


def _draw_among_candidates(logprobs: mx.array, rows: Sequence[Draws], keys: mx.array) -> mx.array:
    """Draw as above; a row whose filters keep no more than the most likely tokens draws among them.

    Whether it does depends on nothing but the row itself, so the same seed
    still gives the same token whatever else is in the batch. Evaluates.
    """
    filters = [row.filter for row in rows]
    places = mx.argpartition(-logprobs, _CANDIDATES - 1, axis=-1)[:, :_CANDIDATES]
    ascending = mx.argsort(mx.take_along_axis(logprobs, places, axis=-1), axis=-1)
    tokens = mx.take_along_axis(places, ascending, axis=-1)
    likely = mx.take_along_axis(logprobs, tokens, axis=-1)
    kept = _cut_by(likely, likely, filters)
    # Where the least likely candidate is out, so is every token that is no candidate.
    complete = cast("list[bool]", (kept[:, 0] == -mx.inf).tolist())
    place = _categorical_rows(kept * _scales(rows), keys)
    drawn = mx.take_along_axis(tokens, place[:, None], axis=-1)[:, 0]
    others = [
        index
        for index, (row, whole) in enumerate(zip(rows, complete, strict=True))
        if row.temperature and not whole
    ]
    if others:
        at = mx.array(others)
        drawn[at] = _draw_among_all(logprobs[at], [rows[index] for index in others], keys[at])
    return drawn


def _scales(rows: Sequence[Draws]) -> mx.array:
    """Return what each row is multiplied with, shape (rows, 1); 1 for a greedy row."""
    return mx.array([[1.0 / (row.temperature or 1.0)] for row in rows])


def _categorical(logits: mx.array, key: mx.array) -> mx.array:
    return mx.random.categorical(logits, key=key)


_categorical_rows = mx.vmap(_categorical)


def _filter_rows(logprobs: mx.array, filters: list[_Filter]) -> mx.array:
    """Make every token impossible that top-p, min-p or top-k exclude in its row.

    Each of the three keeps the most likely tokens down to a threshold, so the
    highest threshold decides and one sort serves all. mlx-lm's own filters are
    compiled with their parameters as constants: on the CPU each new value of
    ``top_p`` would call the C++ compiler, for half a second, in the MLX thread.
    """
    if all(each == _NO_FILTER for each in filters):
        return logprobs
    if all(top_p >= 1.0 and not top_k for top_p, _, top_k in filters):
        best = mx.max(logprobs, axis=-1, keepdims=True)
        return _cut(logprobs, best, _min_p_threshold(best, filters))
    return _cut_by(logprobs, mx.sort(logprobs, axis=-1), filters)


def _cut_by(logprobs: mx.array, ascending: mx.array, filters: list[_Filter]) -> mx.array:
    """Filter with the help of each row's most likely tokens, or all of them, in order."""
    best = ascending[:, -1:]
    threshold = mx.maximum(
        _min_p_threshold(best, filters),
        mx.maximum(_top_p_threshold(ascending, filters), _top_k_threshold(ascending, filters)),
    )
    return _cut(logprobs, best, threshold)


def _cut(logprobs: mx.array, best: mx.array, threshold: mx.array) -> mx.array:
    """Make impossible what is below the threshold. The most likely token stays."""
    return mx.where(logprobs < mx.minimum(threshold, best), -mx.inf, logprobs)


def _min_p_threshold(best: mx.array, filters: list[_Filter]) -> mx.array:
    return best + mx.log(mx.array([[min_p] for _, min_p, _ in filters]))


def _top_p_threshold(ascending: mx.array, filters: list[_Filter]) -> mx.array:
    """Return per row the least likely token of the smallest set with at least this mass.

    It is the first one of ``ascending`` where that has not so much mass.
    """
    # A row without the filter gets a mass that no set reaches; 0 keeps the most likely token.
    masses = mx.array([[top_p if top_p < 1.0 else 2.0] for top_p, _, _ in filters])
    probabilities = mx.exp(ascending.astype(mx.float32))
    above = mx.cumsum(probabilities, axis=-1, reverse=True, inclusive=False)
    dropped = (above >= masses).sum(axis=-1, keepdims=True)
    last = mx.minimum(dropped, ascending.shape[-1] - 1)
    return mx.take_along_axis(ascending, last, axis=-1)


def _top_k_threshold(ascending: mx.array, filters: list[_Filter]) -> mx.array:
    """Return per row the k-th most likely token; tokens as likely as that one stay too.

    It is the first one of ``ascending`` where that has not so many.
    """
    width = ascending.shape[-1]
    places = mx.array([[max(0, width - (top_k or width))] for _, _, top_k in filters])
    return mx.take_along_axis(ascending, places, axis=-1)


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
