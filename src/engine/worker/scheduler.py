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
from ..protocol import (
    Alive,
    Cancel,
    ChatPrompt,
    Delta,
    Failed,
    Ping,
    PrefillProgress,
    Started,
    Step,
)
from .guarded_cache import GuardedCache
from .inbox import Arrived, Closed, Prepared, Unwanted, Withdrawn
from .logprobs import read_logprobs
from .meter import StepMeter
from .runner import Job
from .sampling import Draws, make_processors
from .sequence import Request, Sequence
from .text import TextAssembler
from .waiting import WaitingSequences

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..protocol import FinishReason, StepEvent, TokenLogprob
    from .inbox import InboxItem, Outbox
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
        self._prompt_cache = prompt_cache
        self._errors = errors or ErrorHandler()
        self._guarded = GuardedCache(prompt_cache, self._errors)
        self._vocabulary = vocabulary
        self._context_length = context_length
        self._vocabulary_size = vocabulary_size
        self._inbox = inbox
        self._outbox = outbox
        self._before_step = before_step
        self._meter = StepMeter()
        self._tokenizing: dict[int, bool] = {}
        """Requests between Arrived and Prepared; True once cancelled."""
        self._requests: dict[int, Request] = {}
        self._waiting = WaitingSequences()
        self._running: dict[int, Sequence] = {}
        self._events: list[StepEvent] = []
        self._closed = False

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do until something arrives."""
        return not (self._running or self._waiting or self._events)

    def run(self) -> None:
        """Step until the pipe closes; wait without cost while there is nothing to do."""
        while not self._closed:
            self.step()

    def step(self) -> None:
        """Take what arrived, admit, run one step, send what came of it."""
        self._take_inbox()
        self._admit()
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
            case Cancel():
                self._cancel(item.id)
            case Ping():
                self._outbox.send(Alive())
            case Closed():
                self._closed = True

    def _enqueue(self, prepared: Prepared, *, cancelled: bool) -> None:
        submit, tokens = prepared.submit, prepared.tokens
        room = self._context_length - len(tokens)
        request = Request(
            submit=submit,
            tokens=tokens,
            max_tokens=min(submit.max_tokens or room, room),
            accepted_at=prepared.accepted_at,
        )
        first, *others = self._sequences(request)
        request.live = {first, *others}
        self._requests[request.id] = request
        self._waiting.append(first)
        request.followers = others
        if cancelled:
            self._cancel(request.id)

    def _sequences(self, request: Request) -> list[Sequence]:
        """Make the sequences that are still to run: all, or those that another engine left."""
        submit = request.submit
        chat = isinstance(submit.prompt, ChatPrompt)
        strip = chat and self._vocabulary.strips_first_space
        made: list[Sequence] = []
        for choice in range(submit.n):
            if choice in submit.ended:
                continue
            resumed = submit.resumed[choice] if submit.resumed else ()
            assembler = TextAssembler(
                self._vocabulary.decoder(), submit.stop, strip_first_space=strip
            )
            assembler.recall(resumed)
            sequence = Sequence(request, choice, assembler, resumed, leads=not made)
            sequence.completion_tokens = len(resumed)
            made.append(sequence)
        return made

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
        """Start what waits; a request that cannot be started fails alone."""
        while self._waiting and len(self._running) < self._runner.capacity:
            sequence = self._waiting.pop()
            try:
                self._start(sequence)
            except Exception as error:  # noqa: BLE001 - MLX raises anything, out of memory too
                _log.exception("request %d could not be started", sequence.request.id)
                self._fail({sequence.request}, type(error).__name__)

    def _start(self, sequence: Sequence) -> None:
        request = sequence.request
        submit, tokens = request.submit, sequence.known
        # Further choices read what the first has just stored: no hit of the cache.
        prefix = self._guarded.lookup(request.cache_use, tokens, counted=sequence.leads)
        sequence.in_cache = len(prefix.tokens) if prefix else 0
        sequence.prefill_at = time.monotonic()
        sequence.key = self._runner.insert(
            Job(
                prefix=prefix,
                rest=tokens[sequence.in_cache :],
                max_tokens=request.max_tokens - len(sequence.resumed),
                draws=Draws(
                    submit.sampling,
                    choice=sequence.choice,
                    vocabulary_size=self._vocabulary_size,
                    position=len(sequence.resumed),
                ),
                processors=make_processors(submit.sampling, prompt_tokens=len(request.tokens)),
            )
        )
        self._running[sequence.key] = sequence
        # At once: the server must know what was in a step that the engine did not survive.
        self._outbox.send(Started(request.id, sequence.choice, sequence.prefill_at))

    def _run(self) -> None:
        """Run one step. A step that fails takes the sequences in it along, not the engine."""
        try:
            self._before_step()
            self._meter.begin(len(self._running))
            step = self._runner.step()
            self._meter.end()
            for chunk in step.prefilled:
                self._prefilled(chunk)
            self._sampled(step)
        except Exception as error:  # noqa: BLE001 - models and MLX raise anything; see below
            _log.exception("a step failed; its %d sequences end", len(self._running))
            self._fail_running(type(error).__name__)

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
        logprobs = self._logprobs(step)
        for sample in step.sampled:
            self._take_token(sample, logprobs.get(sample.key), now)

    def _logprobs(self, step: RunnerStep) -> dict[int, TokenLogprob]:
        wanted = [
            sample
            for sample in step.sampled
            if self._running[sample.key].request.submit.logprobs and sample.finish != "stop"
        ]
        if not wanted:
            return {}
        entries = read_logprobs(
            [
                (
                    sample.token,
                    sample.logprobs,
                    self._running[sample.key].request.submit.top_logprobs,
                )
                for sample in wanted
            ],
            self._vocabulary,
        )
        return {sample.key: entry for sample, entry in zip(wanted, entries, strict=True)}

    def _take_token(self, sample: SampledToken, logprob: TokenLogprob | None, now: float) -> None:
        sequence = self._running[sample.key]
        request = sequence.request
        if request.followers:
            self._release_followers(request)
        if not sequence.first_token_at:
            sequence.first_token_at = now
        sequence.completion_tokens += 1
        text, stopped = "", False
        if sample.finish != "stop":  # the end-of-sequence token has no text
            text, stopped = sequence.assembler.add(sample.token)
        reason: FinishReason | None = "stop" if stopped else sample.finish
        if reason is not None and not stopped:
            rest, met = sequence.assembler.finish()
            text += rest
            reason = "stop" if met else reason
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
            self._keep(sample, request)
            self._finish(sequence, reason, now)
            if not request.live:
                self._guarded.end(request.cache_use)

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
        sequence.request.live.discard(sequence)
        if not sequence.request.live:
            del self._requests[sequence.request.id]

    def _fail_running(self, reason: str) -> None:
        """End every request that has a sequence in the runner, and begin with a new runner.

        What the failed step left in the runner's state is unknown.
        """
        failed = {sequence.request for sequence in self._running.values()}
        for sequence in self._running.values():
            sequence.key = -1
        self._running.clear()
        self._fail(failed, reason)
        self._runner = self._make_runner()

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
        self._outbox.send(
            Step(
                events=events,
                at=time.monotonic(),
                running=len(self._running),
                waiting=len(self._waiting),
                prompt_cache_entries=len(self._prompt_cache),
                prompt_cache_bytes=self._prompt_cache.size_bytes,
                prompt_cache_hits=self._prompt_cache.hits,
                prompt_cache_misses=self._prompt_cache.misses,
                figures=self._meter.figures(
                    self._runner,
                    self._prompt_cache,
                    self._guarded.health,
                    running=len(self._running),
                ),
            )
        )
