"""Requests of any kind, drawn: what they ask for is what costs memory beside their tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlx_pharos.engine.protocol import Sampling

if TYPE_CHECKING:
    import random

    from support.driven_engine import DrivenEngine

__all__ = ["submit_random"]


def submit_random(engine: DrivenEngine, dice: random.Random, request_id: int) -> None:
    """Let a request of any kind arrive: what it asks for is what costs memory beside its tokens."""
    shared = [65 + place % 50 for place in range(dice.choice([dice.randint(1, 60), 700, 1400]))]
    engine.submit(
        request_id,
        prompt=[*shared, *[66] * dice.randint(0, 99)],
        max_tokens=dice.randint(1, dice.choice([20, 20, 20, 20, 280])),
        n=dice.choice([1, 1, 1, 2, 4]),
        logprobs=dice.random() < 0.4,
        top_logprobs=dice.randint(0, 20),
        stop=dice.choice([(), (), ("e",)]),
        sampling=Sampling(
            temperature=dice.choice([0.0, 1.0]),
            top_p=dice.choice([1.0, 0.8]),
            top_k=dice.choice([0, 20]),
            min_p=dice.choice([0.0, 0.05]),
            presence_penalty=dice.choice([0.0, 0.5]),
            frequency_penalty=dice.choice([0.0, 0.5]),
            repetition_penalty=dice.choice([1.0, 1.2]),
            logit_bias=dice.choice([(), ((70, 2.0),)]),
            seed=dice.randint(0, 99),
        ),
    )
