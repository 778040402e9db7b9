"""The limit: mlx-lm's ``BatchGenerator`` in one process, without a server around it.

``python -m bench.bare MODEL STREAMS TOKENS RUNS`` prints one JSON list of tokens per second.
"""

from __future__ import annotations

import json
import sys
import time

from mlx_pharos.engine.models.blas import preload

preload("auto")

import mlx.core as mx  # noqa: E402 - after the BLAS
from mlx_lm.generate import BatchGenerator  # noqa: E402
from mlx_lm.utils import load  # noqa: E402


def main() -> None:
    """Generate, and print the rates."""
    directory = sys.argv[1]
    streams, tokens, runs = map(int, sys.argv[2:5])
    model, tokenizer, *_ = load(directory)
    rates = []
    for run in range(runs + 1):  # the first one warms up
        prompts = [
            tokenizer.apply_chat_template(
                [
                    {
                        "role": "user",
                        "content": f"{run} {number}: Tell me a long story about the sea",
                    }
                ],
                add_generation_prompt=True,
            )
            for number in range(streams)
        ]
        generator = BatchGenerator(
            model,
            completion_batch_size=streams,
            prefill_batch_size=8,
            stop_tokens=[(token,) for token in tokenizer.eos_token_ids],
            stream=mx.default_stream(mx.default_device()),
        )
        begin = time.monotonic()
        generator.insert(prompts, max_tokens=[tokens] * streams)
        count = 0
        while True:
            prefilled, sampled = generator.next()
            if not prefilled and not sampled:
                break
            count += len(sampled)
        rates.append(count / (time.monotonic() - begin))
    print(json.dumps(rates[1:]))


if __name__ == "__main__":
    main()
