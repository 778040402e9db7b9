"""A bounded queue in front of an exporter: nobody waits for it, and what overflows is counted.

The SDK's own batch processor drops in silence, and cannot be told to stop by a
deadline. This one is the same queue with a number for each loss:

* put: any thread; appends under a short lock, or drops the new item;
* the worker: one daemon thread; exports batches, never with the lock held;
* close: by a deadline; what is left then is counted as lost.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .losses import Losses

__all__ = ["BatchLimits", "Batcher"]

_log = logging.getLogger(__name__)

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How much is held and how often it is sent; the defaults are OpenTelemetry's."""

    queue: int = 2048
    """Items that wait at most: memory's bound while the collector is away."""
    batch: int = 512
    """Items of one export at most."""
    delay_seconds: float = 5.0
    """The time between exports while there is less than a batch."""


class Batcher(Generic[Item]):
    """Owns the queue and its worker thread."""

    def __init__(
        self,
        export: Callable[[Sequence[Item]], bool],
        *,
        signal: str,
        losses: Losses,
        limits: BatchLimits,
    ) -> None:
        """Start the worker.

        Args:
            export: Sends a batch and returns whether the collector has it. Called
                by the worker alone, or by :meth:`flush` when the worker is not in it.
            signal: ``traces`` or ``logs``.
            losses: Told of every item that is lost.
            limits: See there.
        """
        self._export = export
        self._signal = signal
        self._losses = losses
        self._limits = limits
        self._queue: deque[tuple[Item, int]] = deque()
        self._waiting = 0
        """The sizes of all that is in the queue."""
        self._wake = threading.Condition()
        self._exporting = threading.Lock()
        self._in_flight = 0
        self._closing = False
        self._given_up = False
        self._worker = threading.Thread(target=self._work, name=f"export-{signal}", daemon=True)
        self._worker.start()

    def put(self, item: Item, size: int = 1) -> None:
        """Queue an item; drop it where the queue is full. Never blocks on an export.

        Args:
            item: Any.
            size: What it counts as, in the limits and among the losses.
        """
        with self._wake:
            before = self._waiting
            if self._closing:
                reason = "shutdown"
            elif before + size <= self._limits.queue or not before:
                self._queue.append((item, size))
                self._waiting = before + size
                if before < self._limits.batch <= self._waiting:
                    self._wake.notify()
                return
            else:
                reason = "queue_full"
        self._losses.add(self._signal, reason, size)

    def is_urgent(self) -> bool:
        """Whether what waits may be lost soon: the queue fills up, or ends."""
        return self._closing or self._waiting > self._limits.queue // 2

    def lose(self, reason: str, count: int, words: str = "") -> None:
        """Count some of the batch as lost, though the rest is delivered. From within an export.

        Args:
            reason: As in :meth:`Losses.add`, like ``words``.
            count: Of all that is in the batch no more are counted, and each only once.
            words: What the collector says about it.
        """
        with self._wake:
            if self._given_up:  # all of it is counted
                return
            count = min(count, self._in_flight)
            self._in_flight -= count
        self._losses.add(self._signal, reason, count, words)

    def flush(self) -> None:
        """Export all that waits, in the calling thread."""
        while self._send_batch():
            pass

    def close(self, timeout_seconds: float) -> None:
        """Export what waits and stop; what is left after the time is lost and counted."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._worker.join(max(0.0, timeout_seconds))
        with self._wake:
            self._given_up = True
            left = self._waiting + self._in_flight
            self._queue.clear()
            self._waiting = 0
        self._losses.add(self._signal, "shutdown", left)

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(self._has_batch, timeout=self._limits.delay_seconds)
                closing = self._closing
            self.flush()
            if closing:
                return

    def _has_batch(self) -> bool:
        return self._closing or self._waiting >= self._limits.batch

    def _send_batch(self) -> bool:
        """Export one batch; return whether more waits."""
        with self._exporting:
            with self._wake:
                if self._given_up:
                    return False
                batch, size = self._take()
                self._in_flight = size
            if not batch:
                return False
            try:
                delivered = self._export(batch)
            except Exception:  # noqa: BLE001 - a thread's border: an exporter may raise anything
                _log.debug("an exporter raised", exc_info=True)
                delivered = False
            with self._wake:
                lost = 0 if delivered or self._given_up else self._in_flight
                self._in_flight = 0
                more = bool(self._queue)
            self._losses.add(self._signal, "export_failed", lost)
            return more

    def _take(self) -> tuple[list[Item], int]:
        """Take the items of a batch, and their size, from the queue. The lock is held."""
        batch: list[Item] = []
        taken = 0
        while self._queue:
            item, size = self._queue[0]
            if batch and taken + size > self._limits.batch:
                break
            self._queue.popleft()
            batch.append(item)
            taken += size
        self._waiting -= taken
        return batch, taken
