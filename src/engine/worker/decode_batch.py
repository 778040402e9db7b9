"""The decode step of mlx-lm's batch, without what nobody asked for.

mlx-lm hands out the log probabilities of every row in every step, each as an
array of its own. Few requests want them, and for a small model to cut and
evaluate them takes a fifth of the step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
from mlx_lm.generate import GenerationBatch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DecodeBatch"]


class DecodeBatch(GenerationBatch):
    """Rows that decode together. Made with :meth:`empty`; others join with ``extend``.

    Its step is that of mlx-lm but for two things: all rows share one sampler,
    and only those in ``scored`` get their log probabilities, the others None.
    """

    sampler: Callable[[mx.array], mx.array]
    """Takes log probabilities, shape (rows, vocabulary), and returns tokens, shape (rows,)."""
    scored: set[int]
    """Ids of rows whose log probabilities are wanted. Set by the owner, before a row joins."""

    # mlx-lm's own, whose types it leaves open:
    logits_processors: Any
    _current_tokens: Any
    _next_tokens: Any
    _next_logprobs: list[Any]

    def _step(self) -> tuple[list[int], list[Any]]:
        """Begin to compute the next tokens, and return the ones before them.

        Returns:
            The tokens, and the log probabilities that each was drawn from, shape (vocabulary,).
        """
        tokens = self._current_tokens = self._next_tokens
        scores = self._current_logprobs = self._next_logprobs
        logits = self.model(tokens[:, None], cache=self.prompt_cache)[:, -1, :]
        logits, contexts = self._processed(logits, tokens)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        self._next_tokens = self.sampler(logprobs)
        self._next_logprobs = [
            logprobs[row] if uid in self.scored else None for row, uid in enumerate(self.uids)
        ]
        wanted = [each for each in self._next_logprobs if each is not None]
        mx.async_eval(self._next_tokens, wanted, contexts)
        known = cast("list[int]", tokens.tolist())  # waits for the step before; this one runs on
        for row, token in zip(self.tokens, known, strict=True):
            row.append(token)
        return known, scores

    def _processed(self, logits: mx.array, tokens: mx.array) -> tuple[mx.array, list[mx.array]]:
        """Return the logits after each row's processors, and the contexts that those looked at."""
        if not any(self.logits_processors):
            return logits, []
        rows, contexts = [], []
        for row, processors in enumerate(self.logits_processors):
            own = logits[row : row + 1]
            if processors:
                context = self._token_context[row].update_and_fetch(tokens[row : row + 1])
                contexts.append(context)
                for processor in processors:
                    own = processor(context, own)
            rows.append(own)
        return mx.concatenate(rows, axis=0), contexts
