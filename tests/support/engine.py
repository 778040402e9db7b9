"""Drives an engine client as a route does, and collects what comes back."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlx_pharos.engine.generation import Resumed
from mlx_pharos.engine.protocol import (
    Accepted,
    Delta,
    EngineOptions,
    Finish,
    PrefillProgress,
    Sampling,
    TextPrompt,
)

if TYPE_CHECKING:
    from pathlib import Path

    from mlx_pharos.engine.client import EngineClient
    from mlx_pharos.engine.generation import Generation
    from mlx_pharos.engine.protocol import Prompt, RequestEvent

__all__ = ["GREEDY", "Answer", "collect", "engine_options", "generate", "wait_until_idle"]

GREEDY = Sampling(temperature=0.0)
_PATIENCE = 15.0


def engine_options(
    model: Path,
    *,
    max_batch: int = 8,
    prefill_step: int = 0,
    prompt_cache_bytes: int = -1,
    trust_remote_code: bool = False,
) -> EngineOptions:
    """Return options that say nothing but the model and the bounds."""
    return EngineOptions(
        model_directory=str(model),
        max_batch=max_batch,
        prefill_step=prefill_step,
        prompt_cache_bytes=prompt_cache_bytes,
        context_length=0,
        dequantize="auto",
        blas="auto",
        trust_remote_code=trust_remote_code,
        wired_limit=False,
    )


@dataclass
class Answer:
    """What one request brought."""

    events: list[RequestEvent | Resumed] = field(default_factory=list)
    finishes: dict[int, Finish] = field(default_factory=dict)

    @property
    def accepted(self) -> Accepted:
        """The first event."""
        first = self.events[0]
        assert isinstance(first, Accepted)
        return first

    @property
    def deltas(self) -> list[Delta]:
        """All deltas in order."""
        return [event for event in self.events if isinstance(event, Delta)]

    @property
    def resumptions(self) -> list[Resumed]:
        """How often the engine died meanwhile."""
        return [event for event in self.events if isinstance(event, Resumed)]

    @property
    def progress(self) -> list[PrefillProgress]:
        """All prefill reports in order."""
        return [event for event in self.events if isinstance(event, PrefillProgress)]

    def text(self, choice: int = 0) -> str:
        """The text of one choice."""
        return "".join(delta.text for delta in self.deltas if delta.choice == choice)

    def tokens(self, choice: int = 0) -> list[int]:
        """The token ids of one choice."""
        return [token for delta in self.deltas if delta.choice == choice for token in delta.tokens]


def collect(generation: Generation, *, n: int = 1, until: int | None = None) -> Answer:
    """Receive until every sequence has finished, or ``until`` deltas have come."""
    answer = Answer()
    while len(answer.finishes) < n:
        events = generation.receive(_PATIENCE)
        assert events, "the engine is silent"
        answer.events += events
        answer.finishes |= {event.choice: event for event in events if isinstance(event, Finish)}
        if until is not None and len(answer.deltas) >= until:
            break
    return answer


def generate(
    engine: EngineClient,
    prompt: Prompt | str,
    sampling: Sampling = GREEDY,
    *,
    n: int = 1,
    max_tokens: int = 32,
    stop: tuple[str, ...] = (),
    top_logprobs: int | None = None,
) -> Answer:
    """Run one request to its end."""
    prompt = TextPrompt(prompt) if isinstance(prompt, str) else prompt
    with engine.submit(
        prompt,
        sampling,
        n=n,
        max_tokens=max_tokens,
        stop=stop,
        logprobs=top_logprobs is not None,
        top_logprobs=top_logprobs or 0,
    ) as generation:
        return collect(generation, n=n)


def wait_until_idle(engine: EngineClient) -> None:
    """Wait until the engine has freed every place."""
    deadline = time.monotonic() + _PATIENCE
    while engine.in_flight:
        assert time.monotonic() < deadline, f"{engine.in_flight} places are still taken"
        time.sleep(0.002)
