"""What waits for the scheduler: tokenized requests, cancellations, the end of the pipe."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..protocol import Accepted, Cancel, Failed, Rejected, Submit, decode_to_engine, encode
from .tokenizing import PromptError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from ..protocol import FromEngine, RejectionCode, ToEngine
    from .tokenizing import PromptEncoder

__all__ = ["Arrived", "Closed", "Inbox", "InboxItem", "Outbox", "Prepared", "Withdrawn"]

_log = logging.getLogger(__name__)

_TOKENIZER_THREADS = 2
"""One may be busy with a very long prompt while the other serves short ones."""
_EXIT_SECONDS = 2.0
"""How long the MLX thread may take to notice the end of the pipe, for example in a long chunk."""


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
class Closed:
    """The server closed the pipe."""


InboxItem = Arrived | Prepared | Withdrawn | Cancel | Closed


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
    """Reads the pipe in a thread of its own and tokenizes in a pool.

    The scheduler takes from :attr:`items`. When the pipe ends, the process
    ends: on the scheduler's own way out if it is quick, else at once.
    """

    def __init__(
        self,
        connection: Connection,
        outbox: Outbox,
        encoder: PromptEncoder,
        *,
        context_length: int,
    ) -> None:
        self.items: queue.SimpleQueue[InboxItem] = queue.SimpleQueue()
        self._connection = connection
        self._outbox = outbox
        self._encoder = encoder
        self._context_length = context_length
        self._pool = ThreadPoolExecutor(_TOKENIZER_THREADS, thread_name_prefix="tokenizer")

    def start(self) -> None:
        """Begin to read. Call once, after ``Loaded`` was sent."""
        threading.Thread(target=self._read, name="pipe-reader", daemon=True).start()

    def _read(self) -> None:
        try:
            while True:
                self._take(decode_to_engine(self._connection.recv_bytes()))
        except (EOFError, OSError):
            self.items.put(Closed())
        except Exception:  # noqa: BLE001 - a thread's border
            _log.exception("the server sent a message that cannot be read")
            self.items.put(Closed())
        time.sleep(_EXIT_SECONDS)
        os._exit(0)  # no clean-up can be waited for: the MLX thread is busy or stuck

    def _take(self, message: ToEngine) -> None:
        match message:
            case Submit():
                self.items.put(Arrived(message.id))
                self._pool.submit(self._prepare, message)
            case Cancel():
                self.items.put(message)

    def _prepare(self, submit: Submit) -> None:
        """Tokenize, check and accept one request. Runs in the pool."""
        try:
            self._accept(submit, self._encoder.encode(submit.prompt))
        except PromptError as error:
            self._reject(submit.id, error.code, 0)
        except Exception as error:  # noqa: BLE001 - a task's border; tokenizers raise anything
            _log.exception("request %d could not be tokenized", submit.id)
            self._outbox.send(Failed(submit.id, type(error).__name__))
            self.items.put(Withdrawn(submit.id))

    def _accept(self, submit: Submit, tokens: list[int]) -> None:
        if len(tokens) >= self._context_length:
            self._reject(submit.id, "context_length_exceeded", len(tokens))
            return
        now = time.monotonic()
        echo = self._encoder.decode(tokens) if submit.echo else ""
        self._outbox.send(Accepted(submit.id, len(tokens), now, echo))
        self.items.put(Prepared(submit, tokens, now))

    def _reject(self, request_id: int, code: RejectionCode, prompt_tokens: int) -> None:
        self._outbox.send(
            Rejected(
                request_id,
                code,
                prompt_tokens,
                self._context_length,
            )
        )
        self.items.put(Withdrawn(request_id))
