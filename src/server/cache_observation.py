"""What the engine tells of its prompt cache's errors, counted and shown.

The engine sends totals since its start with each step; what they grew by is
what happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..engine.protocol import PromptCacheHealth
from .policy_observation import BreakerObserver, CacheFaultObserver

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..engine.client import EngineClient
    from ..telemetry.instruments import Instruments

__all__ = ["CacheHealthFolder"]

_BREAKER = "prompt_cache"
_STATES = ("closed", "open", "half_open")
_OPERATIONS = ("lookup", "load", "extract", "store")
_CORRUPTIONS = ("format", "content")


@dataclass(frozen=True, slots=True)
class _Change:
    name: str
    to: str


class CacheHealthFolder:
    """Called by the engine client's reader thread alone, with each step."""

    def __init__(self, instruments: Instruments, engine: EngineClient) -> None:
        """Show the state of the engine's breaker, and count what is folded."""
        self._faults = CacheFaultObserver(instruments)
        self._breaker = BreakerObserver(
            instruments,
            {_BREAKER: lambda: engine.snapshot().figures.prompt_cache_health.breaker},
        )
        self._last = PromptCacheHealth()

    def __call__(self, health: PromptCacheHealth) -> None:
        """Take what came with a step."""
        if health == self._last:
            return
        last, self._last = self._last, health
        for operation in _grown(_OPERATIONS, last.errors, health.errors):
            self._faults.failed(operation)
        for kind in _grown(_CORRUPTIONS, last.corruptions, health.corruptions):
            self._faults.corrupt(kind)
        for state in _grown(_STATES, last.transitions, health.transitions):
            self._breaker(_Change(_BREAKER, state))

    def restarted(self) -> None:
        """Expect an engine that counts from zero."""
        self._last = PromptCacheHealth()


def _grown(names: tuple[str, ...], before: tuple[int, ...], now: tuple[int, ...]) -> Iterator[str]:
    """Yield each name as often as its total grew."""
    for name, new, old in zip(names, now, before, strict=True):
        for _ in range(new - old):
            yield name
