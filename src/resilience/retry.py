"""Retries around what is idempotent and leaves the process: downloads, files on slow disks.

stamina does the work. Three things are ours: its own hooks are off, since they
would log arguments and texts of exceptions; each attempt after the first is
reported as a frozen :class:`RetryReport`; and what is raised at the end is a
:class:`NetworkError` whose message is composed here, with the cause chained.
"""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

import stamina
from stamina.instrumentation import set_on_retry_hooks

from .errors import NetworkError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Retry", "RetryPolicy", "RetryReport", "transient_file_error"]

set_on_retry_hooks(())

_Result = TypeVar("_Result")

_TRANSIENT = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.EINTR,
        errno.EIO,
        errno.EMFILE,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENFILE,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
"""What network file systems report while they reconnect, and a system that is out of descriptors.
A missing file, a refused permission and a full disk are not among them: they stay."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and how long after each failure. Seconds."""

    retries: int = 3
    """Attempts after the first."""
    first_wait: float = 0.1
    """Doubles with each: 0.1, 0.2, 0.4."""
    longest_wait: float = 5.0
    jitter: float = 0.25
    """Up to this share is added to a wait, so that clients that failed together come apart."""

    def wait(self, retry: int, chance: float) -> float:
        """Return the wait before a retry, counted from 1; ``chance`` is 0.0 to 1.0."""
        plain: float = self.first_wait * 2 ** (retry - 1)
        return min(plain, self.longest_wait) * (1 + self.jitter * chance)


@dataclass(frozen=True, slots=True)
class RetryReport:
    """An attempt failed, or one after the first succeeded."""

    operation: str
    """What is attempted, in one word of ours."""
    outcome: Literal["retried", "succeeded", "given_up"]
    attempt: int
    """Which one this is about, counted from 1."""
    cause: str
    """The type of the exception; its text stays with it. Empty where the attempt succeeded."""
    wait_seconds: float = 0.0
    """Until the next attempt."""


def transient_file_error(error: Exception) -> bool:
    """Whether this is a fault of a disk that may be over in a moment."""
    return isinstance(error, OSError) and error.errno in _TRANSIENT


class Retry:
    """Runs calls again that failed with an error of a named kind. Safe from any thread.

    Args:
        policy: How often and when.
        listener: Told of each failure that is retried or given up, and of a late success.
        chance: Gives numbers from 0.0 to 1.0 for the jitter.
    """

    def __init__(
        self,
        policy: RetryPolicy | None = None,
        *,
        listener: Callable[[RetryReport], None] | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.policy = policy or RetryPolicy()
        self._listener = listener or _ignore
        self._chance = chance

    def __call__(
        self,
        call: Callable[[], _Result],
        *,
        operation: str,
        on: type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool],
    ) -> _Result:
        """Call until it succeeds; the errors in ``on``, and no others, are tried again.

        Args:
            call: Idempotent: may have taken effect before it failed.
            operation: One word for reports, such as ``download``.
            on: The types of errors that may be over in a moment, or a function that knows them.

        Raises:
            NetworkError: The last attempt failed too; its error is the cause. All
                errors that are not in ``on`` come out as they are.
        """
        attempts = self.policy.retries + 1
        failures = 0

        def backoff(error: Exception) -> bool | float:
            nonlocal failures
            matches = isinstance(error, on) if isinstance(on, type | tuple) else on(error)
            if not matches:
                return False
            failures += 1
            last = failures == attempts
            wait = 0.0 if last else self.policy.wait(failures, self._chance())
            outcome: Literal["retried", "given_up"] = "given_up" if last else "retried"
            kind = type(error).__name__
            self._listener(RetryReport(operation, outcome, failures, kind, wait))
            return wait

        result = self._attempt(call, backoff, lambda: failures, operation)
        if failures:
            self._listener(RetryReport(operation, "succeeded", failures + 1, ""))
        return result

    def _attempt(
        self,
        call: Callable[[], _Result],
        backoff: Callable[[Exception], bool | float],
        failures: Callable[[], int],
        operation: str,
    ) -> _Result:
        attempts = self.policy.retries + 1
        try:
            for attempt in stamina.retry_context(on=backoff, attempts=attempts, timeout=None):
                with attempt:
                    return call()
        except Exception as error:
            if failures() < attempts:
                raise
            raise NetworkError.after(operation, attempts, error) from error
        raise AssertionError("unreachable: stamina raises after the last attempt")


def _ignore(_: RetryReport) -> None:
    pass
