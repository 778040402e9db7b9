"""A scheduler with a real prompt cache that can be damaged, driven in the test's thread."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Any

from mlx_pharos.engine.protocol import (
    Delta,
    Failed,
    Finish,
    FromEngine,
    Step,
    StepEvent,
    Submit,
    TokenPrompt,
)
from mlx_pharos.engine.worker.batch import BatchRunner
from mlx_pharos.engine.worker.inbox import Arrived, InboxItem, Prepared
from mlx_pharos.engine.worker.prompt_cache import PromptCache
from mlx_pharos.engine.worker.runner import RunnerSize
from mlx_pharos.engine.worker.scheduler import Scheduler
from mlx_pharos.engine.worker.sequential import SequentialRunner
from mlx_pharos.engine.worker.vocabulary import Vocabulary
from support.engine import GREEDY
from support.memory import make_guard

if TYPE_CHECKING:
    from mlx_pharos.engine.models.loading import LoadedModel
    from mlx_pharos.engine.protocol import PromptCacheHealth

__all__ = ["PROMPT", "CachedEngine"]

PROMPT = [65 + place % 7 for place in range(40)]


class _Pipe:
    def __init__(self) -> None:
        self.events: list[StepEvent] = []
        self.last: Step | None = None

    def send(self, message: FromEngine) -> None:
        if isinstance(message, Step):
            self.last = message
            self.events += message.events


class CachedEngine:
    """A scheduler with the tiny model and the real cache, driven in the test's thread."""

    def __init__(
        self, loaded: LoadedModel, *, sequential: bool = False, limit_bytes: int = 1 << 22
    ) -> None:
        self.items: queue.SimpleQueue[InboxItem] = queue.SimpleQueue()
        self.pipe = _Pipe()
        self.cache = PromptCache(limit_bytes=limit_bytes)
        self._ids = 0
        size = RunnerSize(batch=1 if sequential else 4, prefill_step=64, prefill_rows=4)

        def runner() -> BatchRunner | SequentialRunner:
            if sequential:
                return SequentialRunner(loaded.model, eos_token_ids=(), prefill_step=16)
            return BatchRunner(
                loaded.model,
                eos_token_ids=(),
                size=size,
                wired_limit=False,
            )

        self.scheduler = Scheduler(
            runner,
            self.cache,
            make_guard(loaded, self.cache, size),
            Vocabulary(loaded.tokenizer),
            context_length=loaded.context_length,
            vocabulary_size=loaded.vocabulary_size,
            inbox=self.items,
            outbox=self.pipe,  # type: ignore[arg-type]
        )

    def submit(
        self, tokens: list[int], *, n: int = 1, max_tokens: int = 6, stop: tuple[str, ...] = ()
    ) -> int:
        """Let a request arrive, tokenized; return its id."""
        self._ids += 1
        submit = Submit(
            id=self._ids,
            prompt=TokenPrompt(tuple(tokens)),
            sampling=GREEDY,
            n=n,
            max_tokens=max_tokens,
            stop=stop,
            logprobs=False,
            top_logprobs=0,
            submitted_at=0.0,
        )
        self.items.put(Arrived(self._ids))
        self.items.put(Prepared(submit, tokens, 0.0))
        return self._ids

    def step(self, times: int = 200) -> None:
        """Step so often, unless there is nothing to do."""
        for _ in range(times):
            if self.scheduler.idle and self.items.empty():
                return
            self.scheduler.step()

    def run(self, tokens: list[int], **options: Any) -> tuple[list[int], int]:
        """Serve one request; return its tokens and how many came from the cache."""
        request = self.submit(tokens, **options)
        self.step()
        mine = [event for event in self.pipe.events if event.id == request]
        assert not [event for event in mine if isinstance(event, Failed)]
        (finish,) = [e for e in mine if isinstance(e, Finish) and e.choice == 0]
        deltas = [e for e in mine if isinstance(e, Delta) and e.choice == 0]
        return [token for delta in deltas for token in delta.tokens], finish.cached_tokens

    @property
    def health(self) -> PromptCacheHealth:
        """What the last step said of the cache."""
        assert self.pipe.last is not None
        return self.pipe.last.figures.prompt_cache_health

    @property
    def breaker(self) -> str:
        """The state of the cache's breaker."""
        return self.health.breaker

    @property
    def entries(self) -> list[Any]:
        """The entries of mlx-lm's index."""
        nodes: list[Any] = [self.cache._entries._trie._trie.get("", {})]
        found = []
        for node in nodes:
            found += [node["__value__"]] if "__value__" in node else []
            nodes += [child for token, child in node.items() if token != "__value__"]
        return found

    @property
    def entry(self) -> Any:
        """The only entry."""
        (found,) = self.entries
        return found

    def break_entries(self, count: int) -> list[list[int]]:
        """Store the states of so many prompts, break them really, and return the prompts."""
        prompts = [[65 + number, *PROMPT] for number in range(count)]
        for prompt in prompts:
            self.run(prompt)
        for entry in self.entries:
            entry.prompt_cache[0].keys = None
        return prompts

    def switch_off(self) -> None:
        """Meet five broken entries in a row."""
        for prompt in self.break_entries(5):
            self.run(prompt)
