"""What waits for the scheduler: tokenized requests, cancellations, the end of the pipe."""

from __future__ import annotations

import logging
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..protocol import (
    Accepted,
    Cancel,
    ChatPrompt,
    Failed,
    Ping,
    Rejected,
    Submit,
    TextPrompt,
    TokenPrompt,
    decode_to_engine,
    encode,
)
from .time_limit import prepare_thread
from .tokenizing import PromptError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from ..protocol import FromEngine, Prompt, RejectionCode, ToEngine
    from .memory_guard import MemoryGuard
    from .tokenizing import PromptEncoder

__all__ = [
    "Arrived",
    "Closed",
    "Inbox",
    "InboxItem",
    "Outbox",
    "Prepared",
    "Starved",
    "Unwanted",
    "Withdrawn",
]

_log = logging.getLogger(__name__)

_LONG_TEXT = 100_000
"""Characters from which on a prompt is tokenized in a thread apart, so that short ones never wait
behind it: a prompt of 10 MB takes seconds."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request is being tokenized; exactly one Prepared or Withdrawn follows."""

    id: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request is tokenized and accepted."""

    submit: Submit
    tokens: list[int]
    accepted_at: float


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A request was rejected before it reached the scheduler."""

    id: int


@dataclass(frozen=True, slots=True)
class Unwanted:
    """A request's client left before its prompt was tokenized; nothing else follows."""

    submit: Submit


@dataclass(frozen=True, slots=True)
class Starved:
    """Memory was missing while a request was tokenized; it was rejected, and may come again."""

    error: MemoryError


@dataclass(frozen=True, slots=True)
class Closed:
    """The server closed the pipe."""


InboxItem = Arrived | Prepared | Withdrawn | Unwanted | Starved | Cancel | Ping | Closed


class Outbox:
    """The engine's writing end of the pipe. Safe from any thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, message: FromEngine) -> None:
        """Write one message. A closed pipe is the reader's to notice."""
        data = encode(message)
        try:
            with self._lock:
                self._connection.send_bytes(data)
        except OSError:
            _log.debug("the server closed the pipe")


class Inbox:
    """Reads the pipe in a thread of its own and tokenizes in two others.

    The scheduler takes from :attr:`items`.
    """

    def __init__(
        self,
        connection: Connection,
        outbox: Outbox,
        encoder: PromptEncoder,
        memory: MemoryGuard,
        *,
        context_length: int,
    ) -> None:
        self.items: queue.SimpleQueue[InboxItem] = queue.SimpleQueue()
        self._connection = connection
        self._outbox = outbox
        self._encoder = encoder
        self._memory = memory
        self._context_length = context_length
        self._short = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        self._long = ThreadPoolExecutor(1, thread_name_prefix="tokenizer-long")
        self._untouched: dict[int, Submit] = {}
        """Requests that wait for a tokenizer. Whoever pops one decides what becomes of it; the
        reader and the tokenizers do, and a pop is atomic."""

    def start(self) -> None:
        """Begin to read. Call once, after ``Loaded`` was sent."""
        for pool in (self._short, self._long):
            pool.submit(prepare_thread)
        threading.Thread(target=self._read, name="pipe-reader", daemon=True).start()

    def _read(self) -> None:
        try:
            while True:
                self._take(decode_to_engine(self._connection.recv_bytes()))
        except (EOFError, OSError):
            pass
        except Exception:  # noqa: BLE001 - a thread's border
            _log.exception("the server sent a message that cannot be read")
        self.items.put(Closed())

    def _take(self, message: ToEngine) -> None:
        match message:
            case Submit():
                self.items.put(Arrived(message.id))
                self._untouched[message.id] = message
                pool = self._long if _length(message.prompt) > _LONG_TEXT else self._short
                pool.submit(self._prepare, message.id)
            case Cancel():
                submit = self._untouched.pop(message.id, None)
                self.items.put(message if submit is None else Unwanted(submit))
            case Ping():
                self.items.put(message)

    def _prepare(self, request_id: int) -> None:
        """Tokenize, check and accept one request, unless its client has left meanwhile."""
        submit = self._untouched.pop(request_id, None)
        if submit is None:
            return
        try:
            self._encoder.check_bias(submit.sampling.logit_bias)
            self._accept(submit, self._encoder.encode(submit.prompt))
        except PromptError as error:
            self._reject(submit.id, error.code, 0)
        except MemoryError as error:
            self._reject(submit.id, "memory", 0)
            self.items.put(Starved(error.with_traceback(None)))
        except Exception as error:  # noqa: BLE001 - a task's border; tokenizers raise anything
            _log.exception("request %d could not be tokenized", submit.id)
            self._outbox.send(Failed(submit.id, type(error).__name__))
            self.items.put(Withdrawn(submit.id))

    def _accept(self, submit: Submit, tokens: list[int]) -> None:
        if len(tokens) >= self._context_length:
            self._reject(submit.id, "context_length_exceeded", len(tokens))
            return
        # An engine before this one, with more memory, may have accepted and half answered it.
        if not submit.resumed and (shortage := self._shortage(submit, tokens)):
            self._reject(submit.id, shortage, len(tokens))
            return
        now = time.monotonic()
        echo = self._encoder.decode(tokens) if submit.echo else ""
        self._outbox.send(Accepted(submit.id, len(tokens), now, echo))
        self.items.put(Prepared(submit, tokens, now))

    def _shortage(self, submit: Submit, tokens: list[int]) -> RejectionCode | None:
        """Return why there is no memory for a new request, if there is none."""
        if len(tokens) + self._answer_tokens(submit, tokens) > self._memory.largest_tokens:
            return "too_large"
        return "memory" if self._memory.retry_seconds else None

    def _answer_tokens(self, submit: Submit, tokens: list[int]) -> int:
        """Return what the answer needs: all that was asked for, or a beginning of what was not."""
        return min(submit.max_tokens, self._context_length - len(tokens)) or 1

    def _reject(self, request_id: int, code: RejectionCode, prompt_tokens: int) -> None:
        self._outbox.send(
            Rejected(
                request_id,
                code,
                prompt_tokens,
                self._context_length,
                self._memory.largest_tokens,
                self._memory.retry_seconds,
            )
        )
        self.items.put(Withdrawn(request_id))


def _length(prompt: Prompt) -> int:
    """Return the characters that have to be tokenized."""
    match prompt:
        case ChatPrompt():
            return sum(len(message.content) for message in prompt.messages)
        case TextPrompt():
            return len(prompt.text)
        case TokenPrompt():
            return 0
