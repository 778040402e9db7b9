"""The routes that generate: read, submit, answer in one body or as a stream."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flask import Response, request

from ..resilience.deadline import Deadlines
from ..resilience.errors import (
    ModelNotFoundError,
    RequestError,
)
from ..telemetry.attributes import close_model
from ..telemetry.http import exchange_of
from ..telemetry.record import GenerationDraft
from .auth import sharer
from .caller import caller_of
from .content_capture import capture
from .envelope import Envelope
from .families import ChatFamily, CompletionFamily, check_capacity
from .foreign_errors import told_error
from .json_body import read_json_object, shown
from .patience import TIMEOUT_HEADER, RequestPatience, requested_seconds
from .rating import take_tokens
from .run import ClientGoneError, Run, start_run
from .sse import EventStream

if TYPE_CHECKING:
    from ..engine.client import EngineClient
    from ..resilience.rates import Rates
    from .admittance import Admittance
    from .call import GenerationCall
    from .caller import Caller
    from .families import Family
    from .options import RequestDefaults, ServerOptions
    from .shutdown import Shutdown

__all__ = ["GenerateRoute", "check_served"]

_STREAM_HEADERS = {
    "Cache-Control": "no-cache",
    # nginx would collect the events otherwise.
    "X-Accel-Buffering": "no",
}


class GenerateRoute:
    """Answers a generation request of any family. One object, called by many threads."""

    def __init__(
        self,
        options: ServerOptions,
        engine: EngineClient,
        shutdown: Shutdown,
        rates: Rates,
        admittance: Admittance,
        *,
        captures_content: bool = False,
    ) -> None:
        """Answer with ``engine``.

        Args:
            options: Fixed for the server's life.
            engine: Owned by the caller.
            shutdown: Says when the time to answer is over.
            rates: What each client may ask for.
            admittance: Where the gate has not asked whether a request may be looked at.
            captures_content: Whether spans have prompts and answers.
        """
        self._captures_content = captures_content
        self._options = options
        self._engine = engine
        self._shutdown = shutdown
        self._rates = rates
        self._admittance = admittance

    def chat(self) -> Response:
        """``POST /v1/chat/completions``."""
        return self._generate(ChatFamily())

    def completion(self) -> Response:
        """``POST /v1/completions``."""
        return self._generate(CompletionFamily())

    def _generate(self, family: Family) -> Response:
        """Answer, and note for the request's record how that went."""
        draft = GenerationDraft(operation=family.operation, model=self._options.model_name)
        exchange_of(request.environ).generation = draft
        try:
            return self._answer(family, draft)
        except ClientGoneError:
            draft.left = True
            raise
        except Exception as error:
            draft.fail(told_error(error))
            raise

    def _answer(self, family: Family, draft: GenerationDraft) -> Response:
        options, rates = self._options, self._rates
        caller = caller_of(request.environ)
        self._admittance.admit(caller)
        body = read_json_object(request.environ, max_bytes=options.max_body_bytes)
        call = replace(
            family.read(body, self._defaults()), tenant=sharer(caller.tenant, options.api_keys)
        )
        _note(draft, call, options)
        check_served(call.model, options)
        check_capacity(call, options.max_batch + options.max_queue, family.prompt_field)
        if self._captures_content and exchange_of(request.environ).span.is_recording:
            draft.content = capture(call)
        run = self._run()
        run.content = draft.content
        charge = take_tokens(rates, caller.tenant, call, body_bytes=request.content_length or 0)
        run.on_finished = lambda usage: charge.settle(usage.prompt + usage.completion)
        draft.report = charge.settled_by(run.report)
        draft.has_begun = lambda: run.begun
        self._start(run, call, family, caller)
        envelope = Envelope(options.model_name)
        if call.stream:
            return self._stream(family, call, run, envelope, draft)
        return _whole(family, call, run, envelope)

    def _defaults(self) -> RequestDefaults:
        loaded = self._engine.loaded
        defaults = self._options.defaults
        return defaults if loaded is None else replace(defaults, sampling=loaded.sampling)

    def _run(self) -> Run:
        """Return a run for this request, with its deadlines; nothing is submitted yet."""
        environ: dict[str, Any] = request.environ
        disconnected = environ.get("waitress.client_disconnected", bool)
        options = self._options
        deadlines = Deadlines(
            total_seconds=requested_seconds(
                request.headers.get(TIMEOUT_HEADER), options.request_seconds
            ),
            queue_seconds=options.queue_seconds,
            retry_after=self._engine.retry_after,
            started_at=exchange_of(environ).started_at,
        )
        patience = RequestPatience(disconnected, self._shutdown.is_out_of_time, deadlines)
        return Run(patience, options.poll_seconds)

    def _start(self, run: Run, call: GenerationCall, family: Family, caller: Caller) -> None:
        try:
            # The first bytes of a stream come at once. Only where it has to wait for a place they
            # come when proxies want to hear: till then, waiting in vain is a status, not an event.
            waits = call.stream and self._engine.in_flight >= self._options.max_batch
            begin = self._options.keep_alive_seconds if waits else 0.0
            kept = caller.reservation
            start_run(run, self._engine, call, begin_seconds=begin, reservation=kept)
        except RequestError as error:
            if error.param in {"messages", "prompt"}:
                error.param = family.prompt_field
            raise

    def _stream(
        self,
        family: Family,
        call: GenerationCall,
        run: Run,
        envelope: Envelope,
        draft: GenerationDraft,
    ) -> Response:
        stream = EventStream(
            run,
            family.stream(call, envelope, run.choices),
            include_usage=call.include_usage,
            keep_alive_seconds=self._options.keep_alive_seconds,
            request_id=exchange_of(request.environ).request_id,
            draft=draft,
        )
        return Response(
            stream,
            content_type="text/event-stream; charset=utf-8",
            headers=_STREAM_HEADERS,
            # werkzeug hands the iterable to waitress as it is, close() included.
            direct_passthrough=True,
        )


def check_served(model: str, options: ServerOptions) -> None:
    """Raise :class:`ModelNotFoundError` where the server has no such model."""
    if model not in options.served_model_names:
        served = ", ".join(map(shown, options.served_model_names))
        message = f"The model {shown(model)} is not served here. Served: {served}."
        raise ModelNotFoundError(message, param="model")


def _note(draft: GenerationDraft, call: GenerationCall, options: ServerOptions) -> None:
    """Keep what the record says of the request."""
    draft.request_model = close_model(call.model, options.served_model_names)
    draft.stream = call.stream
    draft.choices = call.n * len(call.prompts)
    draft.max_tokens = call.max_tokens
    draft.temperature = call.sampling.temperature
    draft.top_p = call.sampling.top_p


def _whole(family: Family, call: GenerationCall, run: Run, envelope: Envelope) -> Response:
    try:
        answer = family.answer(call, envelope, run.choices)
        while not run.finished:
            answer.add(run.receive())
        body = answer.body(run.usage())
    finally:
        run.close()
    return Response(body, content_type="application/json")
