"""The scheduler: which sequence runs, and what became of it.

The engine's story is one :meth:`Scheduler.step`: take what arrived, admit,
run, send. It runs in the MLX thread and owns the runner, the prompt cache and
every sequence; nothing else touches them.
"""

from __future__ import annotations

import logging
import queue
import time
from functools import partial
from typing import TYPE_CHECKING

from ...resilience.error_handler import ErrorHandler
from ..protocol import OUT_OF_MEMORY, Alive, Cancel, Delta, Failed, Ping, PrefillProgress, Started
from .guarded_cache import GuardedCache
from .inbox import Arrived, Closed, Prepared, Starved, Unwanted, Withdrawn
from .job import make_job
from .logprobs import step_logprobs
from .memory_guard import is_allocation_failure
from .meter import StepMeter
from .sequence import Request, Sequence, make_sequences
from .suspects import Suspects
from .waiting import WaitingSequences

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..protocol import FinishReason, StepEvent, StepFigures, TokenLogprob
    from .inbox import InboxItem, Outbox
    from .memory_guard import MemoryGuard
    from .prompt_cache import PromptCache
    from .runner import PrefillChunk, Runner, RunnerStep, SampledToken
    from .vocabulary import Vocabulary

__all__ = ["Scheduler"]

_log = logging.getLogger(__name__)


class Scheduler:
    """Tenants take turns, first come first served within each, up to the runner's capacity."""

    def __init__(
        self,
        make_runner: Callable[[], Runner],
        prompt_cache: PromptCache,
        guard: MemoryGuard,
        vocabulary: Vocabulary,
        *,
        context_length: int,
        vocabulary_size: int,
        inbox: queue.SimpleQueue[InboxItem],
        outbox: Outbox,
        before_step: Callable[[], None] = lambda: None,
        errors: ErrorHandler | None = None,
    ) -> None:
        """Build the first runner on the calling thread, which becomes the MLX thread.

        Args:
            make_runner: Called again when a runner failed and its state cannot be trusted.
            prompt_cache: Owned by the scheduler from now on.
            guard: Owned too; says for whom there is memory.
            vocabulary: The bytes of each token.
            context_length: Tokens of prompt and answer together at most.
            vocabulary_size: Ids that the model's logits cover.
            inbox: What arrives.
            outbox: Where messages go.
            before_step: Called in the MLX thread before each step that runs something.
            errors: Takes the prompt cache's errors; its own where there is none.
        """
        self._make_runner = make_runner
        self._runner = make_runner()
        self._errors = errors or ErrorHandler()
        self._guarded = GuardedCache(prompt_cache, self._errors)
        self._guard = guard
        guard.preempt_youngest = self._relieve
        self._vocabulary = vocabulary
        self._context_length = context_length
        self._vocabulary_size = vocabulary_size
        self._inbox = inbox
        self._outbox = outbox
        self._before_step = before_step
        self._meter = StepMeter(guard, prompt_cache, self._guarded)
        self._tokenizing: dict[int, bool] = {}
        """Requests between Arrived and Prepared; True once cancelled."""
        self._requests: dict[int, Request] = {}
        self._suspects = Suspects()
        self._waiting = WaitingSequences()
        self._running: dict[int, Sequence] = {}
        self._growing: list[Sequence] = []
        """Sequences that have to reserve more memory before the next step."""
        self._events: list[StepEvent] = []
        self._closed = False

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do until something arrives."""
        return not (self._running or self._waiting or self._events)

    def figures(self) -> StepFigures:
        """Return what is measured between two steps; of the MLX thread, as all else here."""
        return self._meter.figures(self._runner, running=len(self._running))

    def run(self) -> None:
        """Step until the pipe closes; wait without cost while there is nothing to do."""
        while not self._closed:
            self.step()

    def step(self) -> None:
        """Take what arrived, admit, run one step, send what came of it."""
        self._take_inbox()
        if not self.idle:
            # Looking at a shortage that no work can end would refuse work for as long as some comes.
            self._guard.look(self._runner)
        self._admit()
        self._grow()
        if self._running:
            self._run()
        self._send()

    # -- what arrived ---------------------------------------------------------

    def _take_inbox(self) -> None:
        block = self.idle
        try:
            while not self._closed:
                self._take(self._inbox.get(block=block))
                block = False
        except queue.Empty:
            return

    def _take(self, item: InboxItem) -> None:
        match item:
            case Arrived():
                self._tokenizing[item.id] = False
            case Prepared():
                self._enqueue(item, cancelled=self._tokenizing.pop(item.submit.id))
            case Withdrawn():
                self._tokenizing.pop(item.id, None)
            case Unwanted():
                del self._tokenizing[item.submit.id]
                self._enqueue(Prepared(item.submit, [], time.monotonic()), cancelled=True)
            case Starved():
                self._guard.recover(item.error, self._errors)
            case Cancel():
                self._cancel(item.id)
            case Ping():
                self._outbox.send(Alive())
            case Closed():
                self._closed = True

    def _enqueue(self, prepared: Prepared, *, cancelled: bool) -> None:
        submit, tokens = prepared.submit, prepared.tokens
        room = min(self._context_length, self._guard.largest_tokens) - len(tokens)
        request = Request(
            submit=submit,
            tokens=tokens,
            # An engine before this one may have had more room, and have got further.
            max_tokens=max(min(submit.max_tokens or room, room), submit.progress + 1),
            accepted_at=prepared.accepted_at,
        )
        first, *others = make_sequences(request, self._vocabulary)
        request.live = {first, *others}
        self._requests[request.id] = request
        self._waiting.append(first)
        request.followers = others
        if cancelled:
            self._cancel(request.id)

    def _cancel(self, request_id: int) -> None:
        if request_id in self._tokenizing:
            self._tokenizing[request_id] = True
            return
        request = self._requests.get(request_id)
        if request is None:
            return
        self._waiting.remove(request)
        now = time.monotonic()
        for sequence in sorted(request.live, key=lambda live: live.choice):
            if sequence.key >= 0:
                self._runner.remove(sequence.key)
            self._finish(sequence, "cancelled", now)
        request.followers.clear()

    # -- what runs ------------------------------------------------------------

    def _admit(self) -> None:
        """Start what waits and has memory, in its turn: nothing passes what waits for memory."""
        while self._waiting and len(self._running) < self._runner.size.batch:
            trial = self._suspects.on_trial
            sequence = self._waiting.first_of(trial) if trial else self._waiting.peek()
            if sequence is None:
                return
            if not self._guard.admit(sequence, alone=not self._running):
                if self._running:
                    return
                # Only of what an engine with more memory has accepted the size was not checked.
                self._fail({sequence.request}, OUT_OF_MEMORY)
                continue
            self._waiting.pop(sequence)
            failure: Exception | None = None
            try:
                self._start(sequence)
            except Exception as error:  # noqa: BLE001 - MLX raises anything
                _log.exception("request %d could not be started", sequence.request.id)
                failure = error.with_traceback(None)  # its frames hold what could be freed
            if failure is not None:
                self._end_or_retry([sequence], failure)

    def _start(self, sequence: Sequence) -> None:
        request = sequence.request
        # Further choices read what the first has just stored: no hit of the cache.
        prefix = self._guarded.lookup(request.cache_use, sequence.known, counted=sequence.leads)
        sequence.start(len(prefix.tokens) if prefix else 0, at=time.monotonic())
        job = make_job(sequence, prefix, vocabulary_size=self._vocabulary_size)
        sequence.key = self._runner.insert(job)
        self._running[sequence.key] = sequence
        # At once: the server must know what was in a step that the engine did not survive.
        cached = sequence.cached_tokens
        self._outbox.send(Started(request.id, sequence.choice, sequence.prefill_at, cached))

    def _grow(self) -> None:
        """Reserve what the next step may add; where there is no room the youngest gives way."""
        for sequence in self._growing:
            while sequence.key >= 0 and not self._guard.grow(sequence):
                self._preempt_youngest()
        self._growing.clear()

    def _preempt_youngest(self) -> None:
        """Put the sequence that came last back into the queue: the oldest always goes on."""
        youngest = max(
            self._running.values(), key=lambda each: (each.request.accepted_at, each.choice)
        )
        self._runner.remove(youngest.key)
        self._requeue([youngest])
        self._guard.preemptions += 1

    def _relieve(self) -> None:
        """Give way under pressure from outside, but go on with one."""
        if len(self._running) > 1:
            self._preempt_youngest()

    def _requeue(self, sequences: list[Sequence]) -> None:
        """Let sequences that the runner has let go of wait ahead of what came later."""
        for sequence in sorted(sequences, key=lambda each: each.request.accepted_at, reverse=True):
            self._running.pop(sequence.key, None)
            self._guard.release(sequence)
            sequence.give_way()
            self._waiting.put_first([sequence])

    def _run(self) -> None:
        """Run one step. One that fails interrupts the sequences in it, and ends no engine."""
        failure: Exception | None = None
        try:
            self._before_step()
            self._meter.begin()
            step = self._runner.step()
            self._meter.end(len(self._running))
            for chunk in step.prefilled:
                self._prefilled(chunk)
            self._sampled(step)
            self._suspects.acquit()
        except Exception as error:  # noqa: BLE001 - models and MLX raise anything; see below
            _log.exception("a step with %d sequences failed", len(self._running))
            failure = error.with_traceback(None)  # its frames hold what could be freed
        if failure is not None:
            self._replace_runner(failure)

    def _prefilled(self, chunk: PrefillChunk) -> None:
        sequence = self._running[chunk.key]
        request = sequence.request
        processed = sequence.in_cache + chunk.processed
        total = len(request.tokens) + len(sequence.resumed)
        self._events.append(PrefillProgress(request.id, processed, total))
        if chunk.prompt_in_cache and request.followers:
            self._guarded.keep(request.cache_use, partial(self._runner.extract, chunk.key))
            self._release_followers(request)

    def _release_followers(self, request: Request) -> None:
        """Let the other choices of a request begin, ahead of what its tenant sent later."""
        self._waiting.put_first(request.followers)
        request.followers = []

    def _sampled(self, step: RunnerStep) -> None:
        now = time.monotonic()
        logprobs = step_logprobs(step.sampled, self._running, self._vocabulary)
        for sample in step.sampled:
            self._take_token(sample, logprobs.get(sample.key), now)

    def _take_token(self, sample: SampledToken, logprob: TokenLogprob | None, now: float) -> None:
        sequence = self._running[sample.key]
        request = sequence.request
        if request.followers:
            self._release_followers(request)
        if not sequence.first_token_at:
            sequence.first_token_at = now
        if not sequence.generated:
            self._guard.start_decoding(sequence)
        text, reason = sequence.take(sample.token, sample.finish)
        self._events.append(
            Delta(
                id=request.id,
                choice=sequence.choice,
                tokens=(sample.token,),
                text=text,
                logprobs=(logprob,) if logprob is not None else (),
            )
        )
        if reason is not None:
            self._guard.note_served()
            self._finish(sequence, reason, now)
            self._keep(sample, request)
            if not request.live:
                self._guarded.end(request.cache_use)
        elif sequence.completion_tokens >= sequence.grow_at:
            self._growing.append(sequence)

    def _keep(self, sample: SampledToken, request: Request) -> None:
        """Keep the state of a sequence that has ended, and let the runner drop it."""
        if sample.finish is not None:
            self._guarded.keep(request.cache_use, lambda: sample.stored)
            return
        # A stop string: the runner does not know of the end.
        self._guarded.keep(request.cache_use, partial(self._runner.extract, sample.key))
        self._runner.remove(sample.key)

    def _finish(self, sequence: Sequence, reason: FinishReason, now: float) -> None:
        """Report a sequence's end and forget it; the runner has let go of it already."""
        self._events.append(sequence.finish(reason, at=now))
        self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        if sequence.key >= 0:
            del self._running[sequence.key]
            sequence.key = -1
        self._guard.release(sequence)
        sequence.request.live.discard(sequence)
        if not sequence.request.live:
            del self._requests[sequence.request.id]
            self._suspects.forget(sequence.request)

    def _replace_runner(self, error: Exception) -> None:
        """Begin with a new runner: what the failed step left in the old one is unknown."""
        interrupted = [*self._running.values()]
        self._running.clear()
        self._growing.clear()
        for sequence in interrupted:
            sequence.key = -1
        self._runner.close()
        self._runner = self._make_runner()
        self._end_or_retry(interrupted, error)

    def _end_or_retry(self, interrupted: list[Sequence], error: Exception) -> None:
        """Let what a failure interrupted begin again, but for requests that it ends.

        Raises:
            MemoryError: Memory was missing again and again, whatever was freed.
        """
        requests = {sequence.request for sequence in interrupted}
        if is_allocation_failure(error):
            self._guard.recover(error, self._errors)
            ended, reason = {each for each in requests if each.retried}, OUT_OF_MEMORY
            for request in requests:
                request.retried = True
            self._guard.preemptions += sum(each.request not in ended for each in interrupted)
        else:
            ended, reason = self._suspects.charge(requests), type(error).__name__
        self._requeue([each for each in interrupted if each.request not in ended])
        self._fail(ended, reason)

    def _fail(self, failed: set[Request], reason: str) -> None:
        """End requests with an error, whatever their sequences do now."""
        failed_ids = {request.id for request in failed}
        self._events = [event for event in self._events if event.id not in failed_ids]
        for request in failed:
            self._waiting.remove(request)
            for sequence in list(request.live):
                if sequence.key >= 0:
                    self._runner.remove(sequence.key)
                self._forget(sequence)
            self._events.append(Failed(request.id, reason))

    # -- what is told ---------------------------------------------------------

    def _send(self) -> None:
        if not self._events:
            return
        events, self._events = tuple(self._events), []
        self._outbox.send(self._meter.report(events, self._runner, running=len(self._running)))
