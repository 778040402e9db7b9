"""From a sequence to the job that a runner takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .runner import Job
from .sampling import Draws, make_processors

if TYPE_CHECKING:
    from .runner import StoredPrefix
    from .sequence import Sequence

__all__ = ["make_job"]


def make_job(sequence: Sequence, prefix: StoredPrefix | None, *, vocabulary_size: int) -> Job:
    """Return what is still to compute of a sequence.

    Args:
        sequence: With the tokens that it has generated before, if it goes on.
        prefix: KV state of the first of its known tokens.
        vocabulary_size: Ids that the model's logits cover.
    """
    request = sequence.request
    sampling, position = request.submit.sampling, len(sequence.resumed)
    return Job(
        prefix=prefix,
        rest=sequence.known[len(prefix.tokens) if prefix else 0 :],
        max_tokens=request.max_tokens - position,
        draws=Draws(
            sampling, choice=sequence.choice, vocabulary_size=vocabulary_size, position=position
        ),
        processors=make_processors(sampling, prompt_tokens=len(request.tokens)),
        scored=request.submit.logprobs,
    )
