"""What the policies tell telemetry: breakers, retries, memory that was freed, resumed requests.

Policies know no telemetry. Each reports a frozen payload to whoever listens; the
observers here are such listeners, and the protocols say what they read of a payload.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..telemetry import attributes as a
from ..telemetry.reading import Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from ..telemetry.instruments import Instruments
    from ..telemetry.totals import Total

__all__ = [
    "BreakerObserver",
    "CacheFaultObserver",
    "PredictionObserver",
    "ReclaimObserver",
    "RestartCounter",
    "ResumeCounter",
    "RetryAttempt",
    "RetryObserver",
    "restart_reason",
]


class BreakerChange(Protocol):
    """What a breaker says when its state changes."""

    @property
    def name(self) -> str:
        """Which breaker: a word of the server's own code."""

    @property
    def to(self) -> str:
        """The new state: closed, half_open or open."""


class RetryAttempt(Protocol):
    """What is said of an attempt after the first."""

    @property
    def operation(self) -> str:
        """What was attempted: a word of the server's own code."""

    @property
    def outcome(self) -> str:
        """How it goes on: retried, succeeded or given_up."""


class Reclaim(Protocol):
    """What is said when memory had run short and something was done about it."""

    @property
    def action(self) -> str:
        """What was done: a step of the memory ladder."""

    @property
    def freed_bytes(self) -> int:
        """Bytes, as measured before and after."""


class Prediction(Protocol):
    """What is said of the requests' memory when a spell of work has ended."""

    @property
    def predicted_bytes(self) -> int:
        """The most that the ledger had promised in it."""

    @property
    def measured_bytes(self) -> int:
        """The most that they really had; 0 where nothing was measured."""


class BreakerObserver:
    """Shows the states of all breakers, and counts their changes. Safe from any thread."""

    def __init__(self, instruments: Instruments, states: Mapping[str, Callable[[], str]]) -> None:
        """Show breakers.

        Args:
            instruments: Of the process.
            states: How to read each breaker's state, by its name; must not block.
        """
        self._changes = instruments.breaker_transitions
        self._states = dict(states)
        instruments.observe("pharos.breaker.state", self._read)

    def __call__(self, change: BreakerChange) -> None:
        """Count a change."""
        name, state = change.name, a.TRANSITION_TO.close(change.to)
        self._changes.add(1, {a.BREAKER_NAME.name: name, a.TRANSITION_TO.name: state})

    def _read(self) -> Iterable[Reading]:
        for name, read in self._states.items():
            now = read()
            for state in a.BREAKER_STATE.values:
                where = {a.BREAKER_NAME.name: name, a.BREAKER_STATE.name: state}
                yield Reading(int(state == now), where)


class RetryObserver:
    """Counts attempts after the first. Safe from any thread."""

    def __init__(self, instruments: Instruments) -> None:
        self._retries = instruments.retries

    def __call__(self, attempt: RetryAttempt) -> None:
        """Count one."""
        outcome = a.RETRY_OUTCOME.close(attempt.outcome)
        where = {a.RETRY_OPERATION.name: attempt.operation, a.RETRY_OUTCOME.name: outcome}
        self._retries.add(1, where)


class ReclaimObserver:
    """Sums the memory that was freed when it had run short. Safe from any thread."""

    def __init__(self, instruments: Instruments) -> None:
        self._reclaimed = instruments.memory_reclaimed

    def __call__(self, reclaim: Reclaim) -> None:
        """Add what was measured; an action that freed nothing shows as zero."""
        action = a.ACTION.close(reclaim.action)
        self._reclaimed.add(max(0, reclaim.freed_bytes), {a.ACTION.name: action})


class CacheFaultObserver:
    """Counts what went wrong in the prompt cache. Safe from any thread."""

    def __init__(self, instruments: Instruments) -> None:
        self._errors = instruments.prompt_cache_errors
        self._corruptions = instruments.prompt_cache_corruptions

    def failed(self, operation: str, tier: str = "ram") -> None:
        """Count an operation that failed: lookup, load, extract, store or evict."""
        kind = a.CACHE_ERROR_KIND.close(operation)
        self._errors.add(1, {a.TIER.name: tier, a.CACHE_ERROR_KIND.name: kind})

    def corrupt(self, kind: str, tier: str = "ram") -> None:
        """Count an entry that was not what had been stored: by checksum, format or content."""
        kind = a.CORRUPTION_KIND.close(kind)
        self._corruptions.add(1, {a.TIER.name: tier, a.CORRUPTION_KIND.name: kind})


class PredictionObserver:
    """Compares what the ledger promised to requests with what they needed."""

    def __init__(self, instruments: Instruments) -> None:
        self._ratio = instruments.ledger_prediction

    def __call__(self, prediction: Prediction) -> None:
        """Take a spell of work that has ended; one that was not measured says nothing."""
        if prediction.predicted_bytes > 0 and prediction.measured_bytes > 0:
            self._ratio.fold(prediction.measured_bytes / prediction.predicted_bytes)


class RestartCounter:
    """Counts restarts by how the engine had ended: see :func:`restart_reason`."""

    def __init__(self, instruments: Instruments) -> None:
        self._counter = instruments.engine_restarts
        _begin_with_zeros(self._counter)

    def __call__(self, ending: str) -> None:
        """Count one; called in the engine client's reader thread."""
        self._counter.add(1, {a.RESTART_REASON.name: restart_reason(ending)})


class ResumeCounter:
    """Counts requests that went on in a new engine, by how the one before had ended."""

    def __init__(self, instruments: Instruments) -> None:
        self._counter = instruments.requests_resumed
        _begin_with_zeros(self._counter)

    def __call__(self, ending: str, count: int = 1) -> None:
        """Count requests; any thread."""
        self._counter.add(count, {a.RESTART_REASON.name: restart_reason(ending)})


def _begin_with_zeros(counter: Total) -> None:
    """Show every reason from the start: an alert on an increase then sees the first death too."""
    for reason in a.RESTART_REASON.values:
        counter.add(0, {a.RESTART_REASON.name: reason})


def restart_reason(ending: str) -> str:
    """Return how an engine ended, as metrics have it: all exit codes are one."""
    return a.RESTART_REASON.close("exit" if ending.startswith("exit") else ending)
