"""The one place that knows mlx-lm's ``BatchGenerator``.

mlx-lm is pinned, because this class has no stable interface; everything that
depends on its shape is in this module, and in that of its decode step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator

from .decode_batch import DecodeBatch
from .runner import Job, PrefillChunk, RunnerSize, RunnerStep, SampledToken, StoredPrefix
from .sampling import sample

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .sampling import Draws

__all__ = ["BatchRunner"]


class BatchRunner:
    """Runs many sequences together; they join and leave between steps."""

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - mlx-lm's models share no useful type
        *,
        eos_token_ids: Iterable[int],
        size: RunnerSize,
        wired_limit: bool,
        paddable: bool = True,
    ) -> None:
        """Build the generator on the calling thread's default stream.

        Args:
            model: The model that mlx-lm loaded.
            eos_token_ids: Tokens that end a sequence.
            size: What runs at once.
            wired_limit: Whether mlx-lm may raise Metal's wired limit.
            paddable: Whether prompts of different lengths may share a prefill chunk.
        """
        self.size = size
        self._paddable = paddable
        self._draws: dict[int, Draws] = {}
        """Of each job in the generator, in the order of insertion."""
        self._decoding: list[int] = []
        """Whose rows the step's decode has; kept because a sequence can end in between."""
        self._decode_sampled = False
        self._sampler = self._sample  # one object: the generator then samples the batch at once
        self._generator = BatchGenerator(
            model,
            stop_tokens=[(token,) for token in eos_token_ids],
            completion_batch_size=size.batch,
            prefill_batch_size=1,  # before each step as many as fit; see _bound_chunk
            prefill_step_size=size.prefill_step,
            stream=mx.default_stream(mx.default_device()),
        )
        self._scored: set[int] = set()
        self._decode = DecodeBatch.empty(model, self._sampler)
        self._decode.sampler = self._sampler
        self._decode.scored = self._scored
        self._generator._generation_batch = self._decode  # noqa: SLF001
        if not wired_limit:
            self._generator.close()  # all that it does is to restore the wired limit

    def close(self) -> None:
        """Let go of the batches: the sampler ties this object to itself, and it may be frozen."""
        del self._generator, self._decode

    def resize(self, size: RunnerSize) -> None:
        """Do more or less at once from the next step on."""
        self.size = size
        # What runs beyond the new size goes on, and the scheduler adds nothing to it.
        self._generator.completion_batch_size = max(size.batch, len(self._draws))

    def insert(self, job: Job) -> int:
        """Take a job and return its key."""
        prefix = job.prefix
        (key,) = self._generator.insert_segments(
            segments=[[job.rest]],
            max_tokens=[job.max_tokens],
            caches=[prefix.cache] if prefix else None,
            all_tokens=[list(prefix.tokens) if prefix else []],
            samplers=[self._sampler],
            logits_processors=[list(job.processors)],
        )
        self._draws[key] = job.draws
        if job.scored:
            self._scored.add(key)
        return int(key)

    def remove(self, key: int) -> None:
        """Drop a job."""
        self._generator.remove([key])
        self._forget(key)

    def extract(self, key: int) -> StoredPrefix | None:
        """Return a copy of the KV state of a running job."""
        found = self._generator.extract_cache([key]).get(key)
        if found is None:
            return None
        cache, tokens = found
        return StoredPrefix(list(tokens), cache) if tokens else None

    def kv_layers(self) -> Iterable[Any]:
        """Return the cache objects of the batches that prefill and decode."""
        generator = self._generator
        return (*generator._prompt_batch.prompt_cache, *self._decode.prompt_cache)  # noqa: SLF001

    def step(self) -> RunnerStep:
        """Decode one token for every sequence, then prefill one chunk."""
        self._decoding = list(self._decode.uids)
        self._decode_sampled = not self._decoding
        self._bound_chunk()
        prompts, tokens = self._generator.next()
        step = RunnerStep()
        for response in prompts:
            if response.end_of_prompt:
                continue  # the last prompt token went in with the first decode step
            processed, _ = response.progress
            step.prefilled.append(PrefillChunk(response.uid, processed, response.end_of_segment))
        for response in tokens:
            ended = response.finish_reason is not None
            if ended:
                self._forget(response.uid)
            stored = (
                StoredPrefix(list(response.all_tokens), response.prompt_cache) if ended else None
            )
            step.sampled.append(
                SampledToken(
                    key=response.uid,
                    token=response.token,
                    logprobs=response.logprobs,
                    finish=response.finish_reason,
                    stored=stored,
                )
            )
        return step

    def _bound_chunk(self) -> None:
        """Say how many rows the prompt batch may have, so that the next chunk keeps its bound.

        Rows of which the last token alone is left leave the batch before the chunk,
        and new ones join in their order. All rows of a chunk are as long as its
        longest. Rows that joined under a higher bound go on in smaller pieces.
        """
        generator, bound = self._generator, self.size.prefill_step * self.size.prefill_rows
        left = [total - done for _, done, total in generator._currently_processing]  # noqa: SLF001
        chunk = [tokens - 1 for tokens in left if tokens > 1]
        step = min(self.size.prefill_step, max(1, bound // max(1, len(chunk))))
        rows, longest = len(left), max(chunk, default=1)
        for entry in generator._unprocessed_sequences:  # noqa: SLF001
            tokens = sum(map(len, entry[1])) - 1
            longest = max(longest, tokens)
            full = not self._paddable or (len(chunk) + 1) * min(step, longest) > bound
            if tokens and chunk and full:
                break
            if tokens:
                chunk.append(tokens)
            rows += 1
        generator.prefill_batch_size, generator.prefill_step_size = rows, step

    def _forget(self, key: int) -> None:
        del self._draws[key]
        self._scored.discard(key)

    def _sample(self, logprobs: mx.array) -> mx.array:
        """Draw for the rows that the generator samples now. Called by it within a step."""
        keys = self._sampled_keys()
        if len(keys) != logprobs.shape[0]:
            message = f"mlx-lm samples {logprobs.shape[0]} rows where {len(keys)} were expected"
            raise RuntimeError(message)
        return sample(logprobs, [self._draws[key] for key in keys])

    def _sampled_keys(self) -> list[int]:
        """Return whose rows these are.

        The generator does not say. A step samples at most twice: first for the
        sequences that decode, then for those that leave prefill, in the order
        of their insertion. The latter are the ones that were not decoding and
        are no longer in its prompt batch or its queue.
        """
        if not self._decode_sampled:
            self._decode_sampled = True
            return self._decoding
        generator = self._generator
        others = {*self._decoding, *generator._prompt_batch.uids}  # noqa: SLF001
        others.update(entry[0] for entry in generator._unprocessed_sequences)  # noqa: SLF001
        return sorted(self._draws.keys() - others)
