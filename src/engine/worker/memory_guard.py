"""Memory in the engine: who gets it, and what is done when it runs short. Imports mlx."""

from __future__ import annotations

import ctypes
import logging
import sys
import time
from typing import TYPE_CHECKING

import mlx.core as mx
import psutil

from ...resilience.ladder import MemoryLadder, Reclaimed, Rung
from ...resilience.ledger import BLOCK, MemoryLedger
from ..models.machine import available_memory
from ..protocol import Reclaim

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...resilience.error_handler import ErrorHandler
    from ...resilience.ledger import MemoryCosts
    from .prompt_cache import PromptCache
    from .runner import Runner, RunnerSize
    from .sequence import Sequence

__all__ = ["MemoryGuard", "is_allocation_failure"]

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.25
"""The machine's memory is looked at this often at most: it takes a fifth of a millisecond."""
_GROW_BACK_SECONDS = 30.0
"""After so long without trouble a shrunken runner doubles, until it is as large as it was."""
_QUIET_SECONDS = 3.0
"""New work is refused for so long after the last trouble, and trouble starts at the bottom again. Long
enough for what was freed to show, and short enough that who comes within 5 seconds is served."""
_FLOOR_SHARE, _FLOOR_BYTES = 50, 256 << 20
"""Memory is short where less than this share (1/n) of the limit is free, and less than this."""
_FAILURES_IN_A_ROW = 2
"""Allocations that may fail before a sequence is served again. After one more the process is what
is short, not the machine: another begins with its memory free, and what runs is resumed there."""
_WORDS = ("alloc", "out of memory", "insufficient memory")
"""What MLX's errors say on Metal and CUDA when memory is missing. On the CPU it raises nothing:
the process ends."""


def is_allocation_failure(error: BaseException) -> bool:
    """Return whether an error says that memory is missing."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)


class MemoryGuard:
    """Keeps the ledger, and climbs the ladder. Used by the MLX thread alone.

    Other threads may read :attr:`largest_tokens` and :attr:`retry_seconds`.
    """

    def __init__(
        self,
        costs: MemoryCosts,
        prompt_cache: PromptCache,
        size: RunnerSize,
        *,
        weights_bytes: int,
        limit_bytes: int,
        device: str = "cpu",
        headroom: Callable[[], int] = available_memory,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Guard the memory that is left beside the model.

        Args:
            costs: Calibrated with the model.
            prompt_cache: Gets what no request needs.
            size: Of the runner when nothing is wrong.
            weights_bytes: What MLX holds for the model.
            limit_bytes: What MLX may hold in all.
            device: MLX's name of it: a GPU's memory is asked of MLX, the CPU's of the system.
            headroom: Returns what the process can allocate before something is killed.
            clock: Seconds, monotonic.
        """
        self.ledger = MemoryLedger(
            costs,
            limit_bytes=max(limit_bytes - weights_bytes, 0),
            prefill_step=size.prefill_step,
            prefill_rows=size.prefill_rows,
        )
        self.largest_tokens = self.ledger.largest_tokens
        """Prompt and answer of the largest sequence that can ever run, at full size."""
        self.preemptions = 0
        """Sequences that went back to the queue because memory had run short, as the scheduler counts."""
        self.preempt_youngest: Callable[[], None] = lambda: None
        """Set by the scheduler: puts the sequence that started last back into the queue."""
        self._prompt_cache = prompt_cache
        self._full_size = size
        self._halvings = 0
        self.weights_bytes = weights_bytes
        self._limit_bytes = limit_bytes
        self._headroom = headroom
        self._clock = clock
        self._floor = min(limit_bytes // _FLOOR_SHARE, _FLOOR_BYTES)
        self._looked_at = self._trouble_at = -_GROW_BACK_SECONDS
        self._is_outside = False
        """Whether the last trouble was shortness that was seen, not an allocation that failed."""
        self._failures = 0
        """Allocations that have failed since a sequence was last served to its end."""
        self._reclaims: list[Reclaim] = []
        self.ladder = MemoryLadder(
            [
                Rung("buffer_cache", free_buffers),
                Rung("prompt_cache", self._evict),
                Rung("shrink", self._shrink),
                Rung("requeue", self._requeue),
                Rung("refuse", free_buffers),
            ],
            measure=_resident if device == "cpu" else _held,
            clock=clock,
            listener=self._note,
            quiet_seconds=_QUIET_SECONDS,
        )

    @property
    def size(self) -> RunnerSize:
        """What may run at once now."""
        return self._full_size.shrunk(self._halvings)

    @property
    def retry_seconds(self) -> float:
        """0 while new work is taken, else when it will be.

        Where only the machine is short, and nothing runs whose end would free
        memory, waiting helps nobody: what comes then is tried.
        """
        if not self.ladder.refusing or (self._is_outside and not self.ledger):
            return 0.0
        return self.ladder.retry_seconds

    # -- the ledger -----------------------------------------------------------

    def admit(self, sequence: Sequence, *, alone: bool) -> bool:
        """Reserve what a sequence needs to begin, and a block to go on; False where it must wait.

        Beside others it needs room for all to grow by a block, so that what
        runs can go on for a while before one has to give way.
        """
        tokens = min(len(sequence.known) + BLOCK, sequence.request.longest)
        ahead = max(tokens, self.ledger.longest_tokens) + BLOCK
        if not alone and self.ledger.quote(ahead) > self.ledger.limit_bytes:
            return False
        if not self.ledger.reserve(sequence, tokens):
            return False
        self._granted(sequence, tokens)
        return True

    def grow(self, sequence: Sequence) -> bool:
        """Reserve the next block; False where others have to give way first."""
        request = sequence.request
        tokens = len(request.tokens) + sequence.completion_tokens + BLOCK
        if not self.ledger.grow(sequence, min(tokens, request.longest)):
            return False
        self._granted(sequence, tokens)
        return True

    def start_decoding(self, sequence: Sequence) -> None:
        """Note that a prompt is computed: no chunk of it is left to pay for."""
        self.ledger.start_decoding(sequence)
        self._allow_cache()

    def release(self, sequence: Sequence) -> None:
        """Take back what a sequence held, however it ended; the prompt cache may have it."""
        self.ledger.release(sequence)
        self._allow_cache()

    def _granted(self, sequence: Sequence, tokens: int) -> None:
        request = sequence.request
        # The next token but one is computed already when one is handed out.
        ahead = tokens - len(request.tokens) - 1
        sequence.grow_at = ahead if tokens < request.longest else request.longest
        self._allow_cache()

    def _allow_cache(self) -> None:
        """Let the prompt cache have what no request needs, up to its limit at this size."""
        limit = self._prompt_cache.limit_bytes >> self._halvings
        self._prompt_cache.allow(min(self.ledger.spare_bytes, limit))

    # -- the ladder -----------------------------------------------------------

    def look(self, runner: Runner) -> None:
        """Do something where memory is short, before the next step. Cheap where it is not."""
        now = self._clock()
        if _held() > self._limit_bytes or now - self._looked_at >= _LOOK_SECONDS:
            self._look(now)
        if runner.size != self.size:  # also of one that is new since an allocation failed
            runner.resize(self.size)

    def _look(self, now: float) -> None:
        self._looked_at = now
        if self._is_short():
            self._trouble_at = now
            self._is_outside = True
            # What nobody uses and what can be computed again goes at once; the rest is asked for
            # step by step, because it takes a step of the runner to show.
            for _ in range(2):
                step = self.ladder.reclaim()
                _log.warning("memory is short: %s freed %d bytes", step.action, step.freed_bytes)
                if not self._is_short():
                    self.ladder.come_down()
                    break
        elif self._halvings and now - self._trouble_at >= _GROW_BACK_SECONDS:
            self._trouble_at = now
            self._resize(self._halvings - 1)

    def start_smaller(self, halvings: int) -> None:
        """Begin with less at once, because an engine before this one died; it grows back."""
        self._trouble_at = self._clock()
        self._resize(halvings)

    def recover(self, error: Exception, errors: ErrorHandler) -> None:
        """Make room after an allocation failed. The runner that failed must be gone.

        Args:
            error: What the allocation raised.
            errors: Has the ladder climbed, and tells what each step brought.

        Raises:
            MemoryError: Nothing helps, so the process must end: the ladder is climbed, or it was
                and no sequence was served since. Time alone gives a process no memory.
        """
        self._failures += 1
        if self.ladder.exhausted or self._failures > _FAILURES_IN_A_ROW:
            message = "memory is missing, whatever is freed"
            raise MemoryError(message) from error
        before = self._halvings
        self._is_outside = False
        self._trouble_at = self._clock()
        while self._halvings == before and not self.ladder.exhausted:
            errors.handle_oom_error(error, self.ladder)

    def note_served(self) -> None:
        """Note that a sequence reached its end: memory suffices for some work."""
        self._failures = 0

    def take_reclaims(self) -> tuple[Reclaim, ...]:
        """Return what was done since the last call."""
        if not self._reclaims:
            return ()
        taken, self._reclaims = tuple(self._reclaims), []
        return taken

    def _is_short(self) -> bool:
        return _held() > self._limit_bytes or self._headroom() < self._floor

    def _evict(self) -> None:
        self._prompt_cache.allow(0)
        self._allow_cache()
        free_buffers()

    def _shrink(self) -> None:
        self._resize(self._halvings + 1)
        free_buffers()

    def _requeue(self) -> None:
        self.preempt_youngest()

    def _resize(self, halvings: int) -> None:
        if self._full_size.shrunk(halvings) != self.size:
            self._halvings = halvings
            self.ledger.set_prefill(self.size.prefill_step, self.size.prefill_rows)
            self._allow_cache()

    def _note(self, step: Reclaimed) -> None:
        self._reclaims.append(Reclaim(step.action, step.before_bytes, step.after_bytes))


def _held() -> int:
    """Return what MLX holds: arrays, and buffers that it keeps for new ones."""
    return mx.get_active_memory() + mx.get_cache_memory()


def _resident() -> int:
    """Return the process's resident set: on the CPU arrays come from the system's allocator."""
    return int(_process.memory_info().rss)


def free_buffers() -> None:
    """Give back what MLX keeps for later, and what the C library does."""
    mx.clear_cache()
    if _trim is not None:
        _trim(0)


def _find_trim() -> Callable[[int], int] | None:
    """Return glibc's ``malloc_trim``; the CPU's arrays come from its heap."""
    if sys.platform != "linux":
        return None
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None  # another C library
    return found


_process = psutil.Process()
_trim = _find_trim()
