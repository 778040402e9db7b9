"""The face of the policies for errors: the prompt cache's, those of memory, those of the network.

There is one in the engine process, made with the real breaker and ladder, and
one wherever something is fetched. It holds no state of its own: the breaker
counts, the ladder measures, the retry waits.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol, TypeVar

from .breaker import Breaker
from .errors import CacheError, OOMError
from .retry import Retry
from .sanitize import sanitize_error_message

if TYPE_CHECKING:
    from collections.abc import Callable

    from .breaker import BreakerTransition

__all__ = ["ErrorHandler", "MemoryReclaimer", "ReclaimedMemory"]

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")
_MIB = 1 << 20


class ReclaimedMemory(Protocol):
    """What a step of the ladder did, and what was measured before and after it."""

    @property
    def action(self) -> str:
        """What was done."""

    @property
    def before_bytes(self) -> int:
        """Memory in use before."""

    @property
    def after_bytes(self) -> int:
        """Memory in use after."""


_Reclaimed_co = TypeVar("_Reclaimed_co", bound=ReclaimedMemory, covariant=True)


class MemoryReclaimer(Protocol[_Reclaimed_co]):
    """Frees memory, and measures what that brought: the memory ladder."""

    def reclaim(self) -> _Reclaimed_co:
        """Take the next step."""


class ErrorHandler:
    """Safe from any thread, as far as the ladder's ``reclaim`` is.

    Args:
        cache_failure_threshold: Cache errors in a row that switch the prompt cache off.
        cache_recovery_threshold: Requests served without it before it is probed.
        listener: Told when the prompt cache is switched off and on.
        retry: For what is fetched; the defaults where there is none.
    """

    def __init__(
        self,
        *,
        cache_failure_threshold: int = 5,
        cache_recovery_threshold: int = 10,
        listener: Callable[[BreakerTransition], None] | None = None,
        retry: Retry | None = None,
    ) -> None:
        self.cache_breaker = Breaker(
            "prompt_cache",
            failure_threshold=cache_failure_threshold,
            recovery_threshold=cache_recovery_threshold,
            listener=listener,
        )
        self._retry = retry or Retry()

    def handle_cache_error(self, error: Exception, operation: str) -> CacheError:
        """Count an error of the prompt cache, and log it; the request goes on without the cache.

        Args:
            error: What was raised.
            operation: What was done with the cache: lookup, load, extract or store.

        Returns:
            What is known of it, for whoever counts kinds of errors.
        """
        if isinstance(error, CacheError):
            known = error
        else:
            kind = type(error).__name__
            known = CacheError(f"The prompt cache failed with {kind}.", operation=operation)
            known.__cause__ = error
        _log.warning("prompt cache, %s: %s", known.operation, known.message)
        self.cache_breaker.record_failure()
        return known

    def handle_oom_error(
        self, error: Exception, ladder: MemoryReclaimer[_Reclaimed_co]
    ) -> _Reclaimed_co:
        """Free memory after an allocation failed; what that brought is measured, never estimated.

        Args:
            error: What the allocation raised.
            ladder: Takes its next step.

        Returns:
            What the ladder did, with its measurements.

        Raises:
            OOMError: The ladder failed itself, so nothing was freed; its error is the cause.
        """
        try:
            reclaimed = ladder.reclaim()
        except Exception as failure:
            raise OOMError("There is not enough memory, and none could be freed.") from failure
        _log.warning(
            "memory ran short (%s); %s: %.1f MiB in use before, %.1f MiB after",
            type(error).__name__,
            reclaimed.action,
            reclaimed.before_bytes / _MIB,
            reclaimed.after_bytes / _MIB,
        )
        return reclaimed

    def retry_with_backoff(
        self,
        call: Callable[[], _Result],
        *,
        operation: str,
        on: type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool],
    ) -> _Result:
        """Call until it succeeds: see :class:`~.retry.Retry`.

        Raises:
            NetworkError: The last attempt failed too.
        """
        return self._retry(call, operation=operation, on=on)

    @staticmethod
    def sanitize_error_message(text: str) -> str:
        """Return the text without paths, line numbers, keys and tokens: see :mod:`.sanitize`."""
        return sanitize_error_message(text)
