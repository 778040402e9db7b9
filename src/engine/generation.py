"""One submitted request, seen from the thread that answers it."""

from __future__ import annotations

import contextlib
import queue
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from ..resilience.errors import (
    ContextLengthError,
    EngineFailureError,
    InvalidRequestError,
    MemoryShortError,
    OOMError,
    PharosError,
    RequestTooLargeError,
)
from .protocol import OUT_OF_MEMORY, Failed, Finish, Rejected, RequestEvent

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from .protocol import Started

__all__ = ["Generation", "Resumed", "phase_of"]

_REJECTIONS = {
    "no_chat_template": (
        "The served model has no chat template. Use /v1/completions, or serve an instruct model.",
        "messages",
    ),
    "bad_template": (
        (
            "The model's chat template does not accept this conversation. "
            "Check the roles and their order."
        ),
        "messages",
    ),
    "empty_prompt": ("The prompt has no tokens. Send some text.", "prompt"),
    "bad_token": ("A token id is outside of the model's vocabulary.", "prompt"),
    "bad_logit_bias": (
        "A token id in logit_bias is outside of the model's vocabulary. Leave it out.",
        "logit_bias",
    ),
}


@dataclass(frozen=True, slots=True)
class Resumed:
    """The engine died, and another goes on with the request."""

    ending: str
    """How the engine before had ended."""
    lost_at: float
    at: float
    """When the other engine was given it."""


class Generation:
    """The events of one request.

    Made by :meth:`EngineClient.submit`; one thread receives. The engine
    client's reader thread delivers. Leaving the context before the end
    cancels the request in the engine.
    """

    def __init__(
        self,
        request_id: int,
        *,
        n: int,
        cancel: Callable[[int], None],
        pace: Callable[[], float],
        phase: float = 0.0,
    ) -> None:
        """Wait for ``n`` sequences.

        Args:
            request_id: The id on the wire.
            n: Sequences of the request.
            cancel: Called with the id when the request is closed before its end.
            pace: Returns the seconds in which the events are looked at once. Waking a thread for each token of each stream would cost
                more than all else that the server does; a few milliseconds later
                several tokens wait, and leave together.
            phase: Where in the time of day, as a share of a pace, its paces begin.
                Streams that began together would look together ever after, and
                whoever asks the server for something would wait for all of them.
        """
        self.id = request_id
        self._pace = pace
        self._phase = phase
        self._looked_in = -1.0
        """The number of the pace in which it was looked last."""
        self._unfinished = n
        self.begun: Started | None = None
        """What the first engine said that began with it; None before. Of its first choice, the only
        one that looks for the prompt in the cache. Set by the reader thread, once."""
        self.first_token_at = 0.0
        """When an engine sent the first token of any choice; 0 before. Set as ``begun`` is."""
        self._cancel = cancel
        self._closed = False
        self._waiting: queue.SimpleQueue[RequestEvent | Resumed | PharosError] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def receive(self, timeout: float) -> list[RequestEvent | Resumed]:
        """Wait for at least one event and return all that wait.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            The events in order; empty when the time ran out.

        Raises:
            ContextLengthError: The prompt does not fit the context window.
            InvalidRequestError: The model cannot take this prompt.
            EngineFailureError: The request failed; the engine goes on.
            EngineDiedError: The engine ended too often while this request ran, or for good.
        """
        events: list[RequestEvent | Resumed] = []
        self._pause()
        with contextlib.suppress(queue.Empty):
            item = self._waiting.get(timeout=timeout)
            while True:
                if isinstance(item, PharosError):
                    return self._defer(events, item)
                events.append(self._checked(item))
                item = self._waiting.get_nowait()
        return events

    @property
    def has_begun(self) -> bool:
        """Whether an engine has begun with it, by what the reader thread knows."""
        return self.begun is not None

    @property
    def ended(self) -> bool:
        """Whether nothing more can come: every sequence has finished, or an error was raised."""
        return self._unfinished <= 0

    def close(self) -> None:
        """Cancel what still runs of the request. Safe to call again, from any thread."""
        if not self._closed:
            self._closed = True
            if self._unfinished > 0:
                self._cancel(self.id)

    def deliver(self, item: RequestEvent | Resumed | PharosError) -> None:
        """Put an event, or the error that ends the request. For the reader thread."""
        self._waiting.put(item)

    def _pause(self) -> None:
        """Look once in each pace: wait for the next one where this one has had its look.

        Nobody is woken for what comes meanwhile.
        """
        pace = self._pace()
        if pace <= 0.0:
            return
        now = time.monotonic() - self._phase * pace
        number = now // pace
        if number == self._looked_in:
            time.sleep(pace - now % pace)
            number += 1
        self._looked_in = number

    def _defer(
        self, events: list[RequestEvent | Resumed], error: PharosError
    ) -> list[RequestEvent | Resumed]:
        """Raise the error, but only after the text that came before it was handed out."""
        if not events:
            self._unfinished = 0
            raise error
        self._waiting.put(error)
        return events

    def _checked(self, event: RequestEvent | Resumed) -> RequestEvent | Resumed:
        if isinstance(event, Finish):
            self._unfinished -= 1
        return event


def phase_of(number: int) -> float:
    """Return where the paces of the call with this number begin, as a share of a pace.

    Multiples of the golden ratio, less their whole part, lie as far apart as can be.
    """
    return number * 0.6180339887498949 % 1.0


def rejection(event: Rejected) -> PharosError:
    """Return the error that tells a client why the engine did not accept its request."""
    if event.code == "context_length_exceeded":
        return ContextLengthError(
            prompt_tokens=event.prompt_tokens, context_length=event.context_length
        )
    if event.code == "too_large":
        return RequestTooLargeError(
            prompt_tokens=event.prompt_tokens, largest_tokens=event.largest_tokens
        )
    if event.code == "memory":
        message = "The engine is short of memory and takes no new work for a moment. Retry later."
        return MemoryShortError(message, retry_after=max(event.retry_seconds, 1.0))
    message, param = _REJECTIONS[event.code]
    return InvalidRequestError(message, param=param)


def failure(event: Failed) -> PharosError:
    """Return the error that tells a client that its request failed in the engine."""
    if event.reason == OUT_OF_MEMORY:
        return OOMError("Memory ran out while this request ran, and once more when it was retried.")
    return EngineFailureError("The model failed on this request. The server goes on; try again.")
