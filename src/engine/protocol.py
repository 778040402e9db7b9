"""The messages between the server process and the engine process.

One tagged union per direction, encoded as MessagePack arrays by ``msgspec``.
The server sends :data:`ToEngine`, the engine sends :data:`FromEngine`. Times
are seconds of the machine's monotonic clock, which both processes share.

A *request* is one API call; it has ``n`` *sequences*, numbered by ``choice``
from 0. The answer to a :class:`Submit` is exactly one :class:`Accepted`,
:class:`Rejected` or :class:`Failed`, sent as soon as the prompt is tokenized. An
accepted request then has exactly one :class:`Finish` per sequence, or one
:class:`Failed` for the whole request.

An engine that dies leaves requests behind. The server submits them to the next
one with the tokens that it has received, and they go on from there.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from .options import EngineOptions
from .prompt import ChatMessage, ChatPrompt, Prompt, Sampling, TextPrompt, TokenPrompt
from .wire import Message, Value

__all__ = [
    "OUT_OF_MEMORY",
    "OUT_OF_MEMORY_EXIT",
    "Accepted",
    "Alive",
    "Cancel",
    "ChatMessage",
    "ChatPrompt",
    "Delta",
    "EngineOptions",
    "Failed",
    "Finish",
    "FinishReason",
    "FromEngine",
    "LoadFailed",
    "Loaded",
    "Ping",
    "PrefillProgress",
    "Prompt",
    "PromptCacheHealth",
    "Reclaim",
    "Rejected",
    "RejectionCode",
    "RequestEvent",
    "Sampling",
    "Started",
    "Step",
    "StepEvent",
    "StepFigures",
    "Submit",
    "TextPrompt",
    "ToEngine",
    "TokenLogprob",
    "TokenPrompt",
    "TopLogprob",
    "decode_from_engine",
    "decode_options",
    "decode_to_engine",
    "encode",
    "encode_options",
]

FinishReason = Literal["stop", "length", "cancelled"]
RejectionCode = Literal[
    "context_length_exceeded",
    "no_chat_template",
    "bad_template",
    "empty_prompt",
    "bad_token",
    "bad_logit_bias",
    "too_large",
    "memory",
]


OUT_OF_MEMORY_EXIT = 12
"""The exit code of an engine that ends because it gets no memory: the system's number for it."""
OUT_OF_MEMORY = "out of memory"
"""The reason of a :class:`Failed` whose request ran out of memory again when it was retried."""


class Submit(Message):
    """Start a request."""

    id: int
    """Unique in the life of the engine process."""
    prompt: Prompt
    sampling: Sampling
    n: int
    """Sequences to generate from the prompt."""
    max_tokens: int
    """Tokens to generate per sequence at most; 0 means: to the end of the context window."""
    stop: tuple[str, ...]
    """Strings that end a sequence; not part of the text."""
    logprobs: bool
    """Whether each token comes with its log probability."""
    top_logprobs: int
    """How many alternatives come with each token."""
    submitted_at: float
    echo: bool = False
    """Whether the prompt's text comes back with :class:`Accepted` (legacy completions)."""
    tenant: int = 0
    """Whose request it is, as a small number: those who wait take turns by tenant. 0: nobody's."""
    resumed: tuple[tuple[int, ...], ...] = ()
    """Per sequence the tokens that an engine before this one has generated, whose text and log
    probabilities are not sent again; empty for a new request."""
    ended: tuple[int, ...] = ()
    """Sequences that have had their :class:`Finish` and get no other."""

    @property
    def progress(self) -> int:
        """Tokens of the sequence that got furthest of those that have not ended."""
        live = (
            len(tokens) for choice, tokens in enumerate(self.resumed) if choice not in self.ended
        )
        return max(live, default=0)


class Cancel(Message):
    """The client of a request is gone: free its slots. Unknown ids are ignored."""

    id: int


class Ping(Message):
    """Asks the MLX thread for an :class:`Alive`, which comes once it is between two steps."""


ToEngine = Submit | Cancel | Ping


class Loaded(Message):
    """The engine is ready for :class:`Submit`. Sent once."""

    context_length: int
    """Tokens of prompt and answer together at most."""
    vocabulary_size: int
    has_chat_template: bool
    batchable: bool
    """False: sequences run one after the other."""
    device: str
    """MLX's name of the device: ``cpu`` or ``gpu``."""
    dtype: str
    """The dtype that the model computes in, for example ``float32``."""
    mlx_version: str
    mlx_lm_version: str
    blas: str
    """What does matrix products on the CPU: the file of the library that was put in front of
    mlx's own, or ``accelerate``, or ``reference`` where nothing was."""
    prompt_cache_limit_bytes: int
    sampling: Sampling
    """What the model's ``generation_config.json`` recommends, OpenAI's defaults elsewhere: for
    requests that say nothing."""
    expansion: str
    """A sentence: whether the weights were expanded to float32, and why or why not."""
    load_seconds: float
    figures: StepFigures
    """What was measured when it was ready: true until its first :class:`Step`."""
    weights_bytes: int = 0
    """What MLX holds for the model itself, measured."""
    ledger_limit_bytes: int = 0
    """What may be promised to requests; the prompt cache may have what is not."""
    largest_tokens: int = 0
    """Prompt and answer of the largest request that memory can hold."""


class LoadFailed(Message):
    """The model cannot be served; the process ends after this message."""

    reason: str
    """A sentence for the operator."""


class Accepted(Message):
    """The prompt is tokenized, fits, and waits for prefill."""

    id: int
    prompt_tokens: int
    at: float
    echo: str = ""
    """The prompt's text, where the request asked for it."""


class Rejected(Message):
    """The request cannot be served because of what it asks."""

    id: int
    code: RejectionCode
    prompt_tokens: int
    context_length: int
    largest_tokens: int = 0
    """Prompt and answer of the largest request that memory can hold (``too_large``)."""
    retry_seconds: float = 0.0
    """When it makes sense to ask again (``memory``)."""


class Failed(Message):
    """The request failed in the engine; the engine goes on."""

    id: int
    reason: str
    """For the server's log; not shown to clients. :data:`OUT_OF_MEMORY` has an error of its own."""


class Alive(Message):
    """The MLX thread's answer to a :class:`Ping`; no other thread ever sends it."""


class Started(Message):
    """A sequence leaves the queue. Told before the step that may be the engine's last."""

    id: int
    choice: int
    at: float
    """Where it begins again after a failed step: when it did first, as in its :class:`Finish`."""
    cached_tokens: int = 0
    """As in its :class:`Finish`, which may never come."""


class PrefillProgress(Message):
    """A prefill chunk of the request is done."""

    id: int
    processed: int
    """Tokens in the KV cache so far, cached ones included."""
    total: int
    """Tokens of the prompt, and those that an engine before this one has generated."""


class TopLogprob(Value):
    """One alternative at a position."""

    token: int
    text: str
    raw: bytes
    logprob: float


class TokenLogprob(Value):
    """The log probability of a generated token (natural log, after bias and penalties)."""

    token: int
    text: str
    raw: bytes
    logprob: float
    top: tuple[TopLogprob, ...]
    begin: int = 0
    """Characters of the sequence's text before it, held back ones included."""


class Delta(Message):
    """What a sequence gained. Text held back for a stop string comes in a later delta."""

    id: int
    choice: int
    tokens: tuple[int, ...]
    """Ids generated since the sequence's last delta."""
    text: str
    """May be empty: a token can be part of a character or of a stop string."""
    logprobs: tuple[TokenLogprob, ...]
    """One per token where asked for, else empty."""


class Finish(Message):
    """A sequence has ended. Its last text came in a delta before, in the same step."""

    id: int
    choice: int
    reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens whose KV came from the prompt cache."""
    completion_tokens: int
    """Generated tokens, a final end-of-sequence token included, as OpenAI counts them."""
    accepted_at: float
    prefill_at: float
    """When prefill began; equal to ``accepted_at`` for a request that never left the queue."""
    first_token_at: float
    """When the first token was there; 0 where there was none."""
    finished_at: float


StepEvent = PrefillProgress | Delta | Finish | Failed
RequestEvent = Accepted | Rejected | Started | StepEvent


class Reclaim(Value):
    """One step of the memory ladder: what MLX and the process held before it and after it."""

    action: str
    before_bytes: int
    after_bytes: int

    @property
    def freed_bytes(self) -> int:
        """What it freed."""
        return max(self.before_bytes - self.after_bytes, 0)


class PromptCacheHealth(Value):
    """How the prompt cache and its breaker are; the counts are since start."""

    breaker: Literal["closed", "open", "half_open"] = "closed"
    """``closed``: the cache is in use."""
    transitions: tuple[int, ...] = (0, 0, 0)
    """Into closed, open and half_open."""
    errors: tuple[int, ...] = (0, 0, 0, 0)
    """Of lookup, load, extract and store."""
    corruptions: tuple[int, ...] = (0, 0)
    """Entries that were not what had been stored: in format, in content."""


class StepFigures(Value):
    """What the engine measured with a step. Zeros where there is nothing to measure."""

    seconds: float = 0.0
    """How long the runner took."""
    batch_size: int = 0
    """Sequences that were in the step; 0 where the runner ran none to its end."""
    mlx_active_bytes: int = 0
    mlx_cache_bytes: int = 0
    mlx_peak_bytes: int = 0
    kv_used_bytes: int = 0
    """KV state of running sequences that holds tokens."""
    kv_reserved_bytes: int = 0
    """KV state that is allocated for running sequences."""
    prompt_cache_bypasses: int = 0
    """Prompts that were not looked up because the cache is off, since start."""
    prompt_cache_evictions: int = 0
    """Entries that made room for newer ones, since start."""
    prompt_cache_memory_evictions: int = 0
    """Entries that went because requests or the machine needed their memory, since start."""
    ledger_limit_bytes: int = 0
    """What may be promised to requests; the prompt cache may have what is not."""
    ledger_reserved_bytes: int = 0
    """What is promised to the sequences that run."""
    predicted_bytes: int = 0
    """The most that was promised in a spell of work that ended with this step, else 0."""
    measured_bytes: int = 0
    """The most that MLX held in that spell on top of what it held before."""
    reclaims: tuple[Reclaim, ...] = ()
    """What was done since the last step because memory ran short."""
    preemptions: int = 0
    """Sequences that went back to the queue because memory ran short, since start."""
    prompt_cache_health: PromptCacheHealth = PromptCacheHealth()


class Step(Message):
    """Everything that one engine step brought, for all requests: one message a step."""

    events: tuple[StepEvent, ...]
    """In order; a finish comes after the deltas of its sequence."""
    at: float
    running: int
    """Sequences in prefill or decode after the step."""
    prompt_cache_entries: int
    prompt_cache_bytes: int
    prompt_cache_hits: int
    """Lookups that found a prefix, since start."""
    prompt_cache_misses: int
    figures: StepFigures = StepFigures()


FromEngine = Loaded | LoadFailed | Accepted | Rejected | Failed | Started | Step | Alive

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
_options = msgspec.msgpack.Decoder(EngineOptions)


def encode(message: ToEngine | FromEngine) -> bytes:
    """Return the MessagePack form of a message. Safe from any thread."""
    return _encoder.encode(message)


def decode_to_engine(data: bytes) -> ToEngine:
    """Decode a message of the server. Raises ``msgspec.DecodeError`` on anything else."""
    return _to_engine.decode(data)


def decode_from_engine(data: bytes) -> FromEngine:
    """Decode a message of the engine. Raises ``msgspec.DecodeError`` on anything else."""
    return _from_engine.decode(data)


def encode_options(options: EngineOptions) -> bytes:
    """Return the first frame on the pipe: what the engine is started with."""
    return _encoder.encode(options)


def decode_options(data: bytes) -> EngineOptions:
    """Decode the first frame. Raises ``msgspec.DecodeError`` on anything else."""
    return _options.decode(data)
