"""The prompt cache behind its breaker: whatever fails in it, the request goes on.

A request that meets a cache error is computed without the cache. After five
errors in a row the cache is off and empty; ten requests later, that were served
without it, the state of the next one that ends is stored, loaded and compared,
and if every byte is the same the cache is on again. Which errors count, and
when, is in docs/explanation/prompt-cache.md.

Used by the MLX thread alone.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...resilience.breaker import BreakerState
from ..protocol import PromptCacheHealth

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...resilience.error_handler import ErrorHandler
    from .prompt_cache import PromptCache
    from .runner import StoredPrefix

__all__ = ["CacheUse", "GuardedCache"]

_log = logging.getLogger(__name__)
_OPERATIONS = ("lookup", "load", "extract", "store")
_CORRUPTIONS = ("format", "content")


@dataclass(slots=True)
class CacheUse:
    """What one request has to do with the cache, all its choices together."""

    used: bool = False
    """The cache was on when it was asked."""
    without: bool = False
    """The cache was off when it would have been asked."""
    failed: bool = False
    """The request met an error of it."""


class GuardedCache:
    """Nothing here raises an error of the cache."""

    def __init__(self, cache: PromptCache, errors: ErrorHandler) -> None:
        """Guard ``cache``, which belongs to this object from now on."""
        self._cache = cache
        self._handler = errors
        self._breaker = errors.cache_breaker
        self._errors = dict.fromkeys(_OPERATIONS, 0)
        self._corruptions = dict.fromkeys(_CORRUPTIONS, 0)

    def lookup(
        self, use: CacheUse, tokens: list[int], *, counted: bool = True
    ) -> StoredPrefix | None:
        """Return a copy of the longest stored prefix; None where there is none that can be used."""
        if not self._breaker.is_closed:
            use.without = True
            self._cache.bypass(counted=counted)
            return None
        use.used = True
        try:
            return self._cache.lookup(tokens, counted=counted)
        except Exception as error:  # noqa: BLE001 - the border of the cache: MLX raises anything
            self._failed(use, error, "lookup")
            return None

    def keep(self, use: CacheUse, take: Callable[[], StoredPrefix | None]) -> None:
        """Store the state that ``take`` gets from the runner; where a probe is due, probe with it."""
        if not self._cache.limit_bytes:
            return
        if self._breaker.is_closed:
            self._store(use, take)
        elif self._breaker.begin_probe():
            self._probe(use, take)

    def end(self, use: CacheUse) -> None:
        """Take that a request was answered to its end. One that left or failed says nothing."""
        if use.failed or not self._cache.limit_bytes:
            return
        if use.used:
            self._breaker.record_success()
        elif use.without:
            self._breaker.record_served_without()

    @property
    def health(self) -> PromptCacheHealth:
        """What the server is told with each step."""
        transitions = self._breaker.transitions
        return PromptCacheHealth(
            breaker=self._breaker.state.value,
            transitions=tuple(transitions[state] for state in BreakerState),
            errors=tuple(self._errors.values()),
            corruptions=tuple(self._corruptions.values()),
        )

    def _store(self, use: CacheUse, take: Callable[[], StoredPrefix | None]) -> None:
        operation = "extract"
        try:
            prefix = take()
            operation = "store"
            if prefix is not None:
                self._cache.store(prefix)
        except Exception as error:  # noqa: BLE001 - as above
            self._failed(use, error, operation)

    def _probe(self, use: CacheUse, take: Callable[[], StoredPrefix | None]) -> None:
        """Store, load and compare. The caller has the right to; it is given back here."""
        try:
            prefix = take()
            suits = prefix is not None and self._cache.suits(prefix)
            if prefix is not None and suits:
                self._cache.verify(prefix)
        except Exception as error:  # noqa: BLE001 - as above
            use.failed = True
            self._count(error, "store")
            self._cache.clear()
            self._breaker.end_probe(verified=False)
            return
        if suits:
            _log.warning("the prompt cache is on again: what was stored came back the same")
            self._breaker.end_probe(verified=True)
        else:
            self._breaker.abandon_probe()

    def _failed(self, use: CacheUse, error: Exception, operation: str) -> None:
        use.failed = True
        self._count(error, operation)
        if not self._breaker.is_closed:
            _log.error("the prompt cache is off: it has failed too often in a row")
            # What it holds is not to be trusted, and would take memory for nothing.
            self._cache.clear()

    def _count(self, error: Exception, operation: str) -> None:
        known = self._handler.handle_cache_error(error, operation)
        self._errors[known.operation] += 1
        if known.corruption:
            self._corruptions[known.corruption] += 1
