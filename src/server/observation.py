"""What the server's parts tell telemetry: the engine's steps, and the numbers that it reads.

Telemetry knows neither the engine nor the sockets, so the adapters are here.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from ..engine.client import EngineState
from ..engine.protocol import Delta, Failed, Finish
from ..telemetry import attributes as a
from ..telemetry.memory import ResidentMemory
from ..telemetry.reading import Reading
from .policy_observation import PredictionObserver, ReclaimObserver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..engine.client import EngineClient
    from ..engine.protocol import Step
    from ..telemetry.collector import MetricsCollector
    from ..telemetry.instruments import Instruments
    from ..telemetry.reading import Source
    from .cache_observation import CacheHealthFolder
    from .listener import Listener
    from .options import ServerOptions

__all__ = ["StepFolder", "observe_engine", "observe_listener", "resident_memory"]


class StepFolder:
    """Folds the engine's steps into counts. Called by the engine client's reader thread alone.

    It is on the path of every token, so it adds plain numbers and nothing else.
    """

    def __init__(
        self,
        instruments: Instruments,
        collector: MetricsCollector,
        *,
        cache_health: CacheHealthFolder | None = None,
    ) -> None:
        self._instruments = instruments
        self._cache_health = cache_health
        self._collector = collector
        self._reclaimed = ReclaimObserver(instruments)
        self._compare = PredictionObserver(instruments)
        self._last_token: dict[tuple[int, int], float] = {}
        """When each running sequence got its last token, by request and choice."""
        self._told = _Counts()
        """What this engine has told."""
        self._evictions = self._memory_evictions = self._preemptions = 0
        """Of all engines."""
        instruments.observe("pharos.prompt_cache.evictions", self._read_evictions)
        instruments.observe("pharos.requests.preempted", lambda: self._preemptions)

    def __call__(self, step: Step) -> None:
        """Take a step."""
        figures = step.figures
        if figures.batch_size:
            self._instruments.step_duration.fold(figures.seconds)
            self._instruments.batch_size.fold(figures.batch_size)
        if figures.predicted_bytes:
            self._compare(figures)
        for each in figures.reclaims:
            self._reclaimed(each)
        self._fold_tokens(step)
        self._count(step)
        if self._cache_health is not None:
            self._cache_health(figures.prompt_cache_health)

    def restarted(self) -> None:
        """Expect an engine that counts from zero. Called in the reader thread, before its first step."""
        self._told = _Counts()
        if self._cache_health is not None:
            self._cache_health.restarted()

    def forget(self, request_id: int, choices: int) -> None:
        """Forget a request that ended with its engine. Safe from any thread: pops are atomic."""
        for choice in range(choices):
            self._last_token.pop((request_id, choice), None)

    def _fold_tokens(self, step: Step) -> None:
        at, last = step.at, self._last_token
        gaps = []
        for event in step.events:
            if isinstance(event, Delta):
                key = (event.id, event.choice)
                before = last.get(key)
                if before is not None:
                    gaps.append(at - before)
                last[key] = at
            elif isinstance(event, Finish):
                last.pop((event.id, event.choice), None)
            elif isinstance(event, Failed):
                for key in list(last):  # a copy in one go: other threads may forget meanwhile
                    if key[0] == event.id:
                        last.pop(key, None)
        if gaps:
            self._instruments.inter_token.fold_all(gaps)

    def _count(self, step: Step) -> None:
        figures = step.figures
        now = _Counts(
            step.prompt_cache_hits,
            step.prompt_cache_misses,
            figures.prompt_cache_bypasses,
            figures.prompt_cache_evictions,
            figures.prompt_cache_memory_evictions,
            figures.preemptions,
        )
        before = self._told
        if now == before:
            return
        self._told = now
        self._collector.record_cache_hit(now.hits - before.hits)
        self._collector.record_cache_miss(now.misses - before.misses)
        self._collector.record_cache_bypass(now.bypasses - before.bypasses)
        self._evictions += now.evictions - before.evictions
        self._memory_evictions += now.memory_evictions - before.memory_evictions
        self._preemptions += now.preemptions - before.preemptions

    def _read_evictions(self) -> Iterable[Reading]:
        kinds = {"capacity": self._evictions, "memory": self._memory_evictions}
        for kind, count in kinds.items():
            yield Reading(count, {a.TIER.name: "ram", a.EVICTION_KIND.name: kind})


class _Counts(NamedTuple):
    """What an engine counts since its start."""

    hits: int = 0
    misses: int = 0
    bypasses: int = 0
    evictions: int = 0
    memory_evictions: int = 0
    preemptions: int = 0


def resident_memory(engine: EngineClient) -> ResidentMemory:
    """Return the memory of the server and of its engine."""
    server = os.getpid()
    return ResidentMemory(lambda: {"server": server, "engine": engine.pid})


def observe_engine(
    instruments: Instruments, options: ServerOptions, engine: EngineClient, memory: ResidentMemory
) -> None:
    """Let collections read what the engine last told, and the memory of both processes."""
    sources = _Engine(options, engine, memory)
    found: dict[str, Source] = {
        "pharos.requests.running": sources.running,
        "pharos.requests.queued": sources.queued,
        "pharos.prompt_cache.size": sources.of_cache(lambda: engine.snapshot().prompt_cache_bytes),
        "pharos.prompt_cache.entries": sources.of_cache(
            lambda: engine.snapshot().prompt_cache_entries
        ),
        "pharos.prompt_cache.limit": sources.of_cache(
            lambda: engine.snapshot().prompt_cache_limit_bytes
        ),
        "pharos.kv.usage": sources.kv_usage,
        "pharos.kv.reserved": lambda: engine.snapshot().figures.kv_reserved_bytes,
        "pharos.ledger.reserved": sources.ledger_reserved,
        "pharos.ledger.limit": sources.ledger_limit,
        "pharos.engine.up": lambda: int(engine.state is EngineState.READY),
        "pharos.engine.info": sources.info,
        "pharos.engine.last_progress.age": sources.progress_age,
        "pharos.memory.usage": sources.mlx_memory,
        "process.memory.usage": sources.processes,
    }
    for name, source in found.items():
        instruments.observe(name, source)


def observe_listener(instruments: Instruments, listener: Listener) -> None:
    """Let collections read how busy the threads are."""

    def threads() -> Iterable[Reading]:
        busy, idle = listener.threads()
        yield Reading(busy, {a.THREAD_STATE.name: "busy"})
        yield Reading(idle, {a.THREAD_STATE.name: "idle"})

    instruments.observe("pharos.http.threads", threads)
    instruments.observe("pharos.http.queue.depth", listener.queued)


class _Engine:
    """Reads the engine's last figures. Nothing here waits for the engine."""

    def __init__(
        self, options: ServerOptions, engine: EngineClient, memory: ResidentMemory
    ) -> None:
        self._model = {a.MODEL.name: options.model_name}
        self._engine = engine
        self._memory = memory

    def running(self) -> Iterable[Reading]:
        """Sequences in prefill or decode."""
        yield Reading(self._engine.snapshot().running, self._model)

    def queued(self) -> Iterable[Reading]:
        """Sequences that wait."""
        yield Reading(self._engine.snapshot().waiting, self._model)

    def of_cache(self, read: Callable[[], int]) -> Source:
        """Return a source of the prompt cache in memory, which is the only one."""
        return lambda: [Reading(read(), {a.TIER.name: "ram"})]

    def ledger_reserved(self) -> float | None:
        """What is promised to requests; unknown as long as the limit is."""
        figures = self._engine.snapshot().figures
        return None if self.ledger_limit() is None else figures.ledger_reserved_bytes

    def ledger_limit(self) -> float | None:
        """What may be promised; unknown before an engine has loaded the model."""
        loaded = self._engine.loaded
        return loaded.ledger_limit_bytes if loaded is not None else None

    def kv_usage(self) -> float:
        """The share of the allocated KV state that holds tokens; 0 where none is allocated."""
        figures = self._engine.snapshot().figures
        reserved = figures.kv_reserved_bytes
        return figures.kv_used_bytes / reserved if reserved else 0.0

    def info(self) -> Iterable[Reading]:
        """What is served, once it is known."""
        loaded = self._engine.loaded
        if loaded is not None:
            yield Reading(
                1,
                {
                    **self._model,
                    a.DEVICE.name: loaded.device,
                    a.DTYPE.name: loaded.dtype,
                    a.MLX_VERSION.name: loaded.mlx_version,
                    a.MLX_LM_VERSION.name: loaded.mlx_lm_version,
                },
            )

    def progress_age(self) -> float:
        """Seconds since the engine's last progress; 0 while there is nothing to do."""
        return self._engine.silent_seconds

    def mlx_memory(self) -> Iterable[Reading]:
        """What MLX said with the last step, or when the model was loaded; unknown without an engine."""
        snapshot = self._engine.snapshot()
        if not snapshot.measured:
            return
        figures = snapshot.figures
        sizes = {
            "mlx_active": figures.mlx_active_bytes,
            "mlx_cache": figures.mlx_cache_bytes,
            "mlx_peak": figures.mlx_peak_bytes,
        }
        for kind, size in sizes.items():
            yield Reading(size, {a.MEMORY_KIND.name: kind})

    def processes(self) -> Iterable[Reading]:
        """Resident sets."""
        for name, size in self._memory.read().items():
            yield Reading(size, {a.PROCESS.name: name})
