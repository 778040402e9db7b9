"""What is known of one request when it is over: the only source of its telemetry.

A :class:`RequestRecord` is made once, when the last byte is written or the
client has left. Metrics, spans and the access line are all made from it, and
its token counts are those of the answer's ``usage``; so they cannot disagree.

Times are seconds of the monotonic clock, which server and engine share; 0
where something never happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec

from ..resilience import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .content import Content

__all__ = [
    "CLIENT_GONE",
    "REFUSED_CODES",
    "REJECTED_CODES",
    "EngineReport",
    "FinishReason",
    "GenerationDraft",
    "GenerationRecord",
    "RequestRecord",
    "Resumption",
]

FinishReason = Literal["stop", "length", "tool_calls", "cancelled", "refused", "error"]

CLIENT_GONE = "client_gone"
"""The error type of a request whose client left before the end."""


def _codes(kind: type[errors.PharosError]) -> Iterator[str]:
    if kind.code is not None:
        yield kind.code
    for child in kind.__subclasses__():
        yield from _codes(child)


def _refusals(kind: type[errors.PharosError]) -> Iterator[tuple[str, str]]:
    if kind.code is not None and kind.refusal is not None:
        yield kind.code, kind.refusal
    for child in kind.__subclasses__():
        yield from _refusals(child)


_REFUSALS = dict(_refusals(errors.PharosError))
"""What refused a request, by the code of its error."""
REFUSED_CODES = frozenset(_codes(errors.RefusedError))
"""Error codes of requests that came at the wrong time."""
REJECTED_CODES = frozenset(_codes(errors.RequestError))
"""Error codes of requests that were wrong themselves."""


class Resumption(msgspec.Struct, frozen=True, kw_only=True):
    """The engine ended while the request ran, and the request went on in the next one."""

    reason: str
    """How the engine had ended, as in ``pharos.engine.restarts``."""
    lost_at: float
    resumed_at: float


class EngineReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine said of a request's sequences, all prompts and choices together."""

    endings: tuple[str, ...] = ()
    """How each choice ended, in their order; shorter where some did not."""
    prompt_tokens: int = 0
    """Prompt tokens that were worked through, cached ones included; those of ``usage`` once all
    choices have ended."""
    cached_tokens: int = 0
    completion_tokens: int = 0
    longest_completion: int = 0
    """Tokens of the longest choice among those that have ended."""
    accepted_at: float = 0.0
    prefill_at: float = 0.0
    first_token_at: float = 0.0
    finished_at: float = 0.0
    """When the last sequence ended; 0 as long as the engine has not said so of all."""
    decode_seconds: float = 0.0
    """From first to last token, over all sequences."""
    decode_intervals: int = 0
    """The intervals between tokens in it."""
    resumptions: tuple[Resumption, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every sequence came to an end of its own; none was cut off."""
        return self.finished_at > 0 and "cancelled" not in self.endings


class GenerationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a record that only requests to generate have."""

    operation: Literal["chat", "text_completion"]
    model: str
    """The served name that the answer carries."""
    request_model: str = ""
    """The served name that the request asked for, ``_OTHER`` for any other; empty where it was not
    read as far as that."""
    stream: bool = False
    choices: int = 0
    max_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    finish_reason: FinishReason
    error_code: str = ""
    """The error that the client was told, or would have been; empty without one."""
    failed: bool = False
    """Whether that error is the server's fault."""
    begun: bool = False
    """Whether the engine was known to have begun with it when the error was told."""
    engine: EngineReport = EngineReport()
    content: Content | None = None
    """Prompts and answers for the span alone, where the operator opted in."""

    @property
    def succeeded(self) -> bool:
        """Whether the whole answer was generated."""
        return self.finish_reason in {"stop", "length", "tool_calls"}

    @property
    def error_type(self) -> str:
        """The error's code, or that the client left; empty without either."""
        return CLIENT_GONE if self.finish_reason == "cancelled" else self.error_code


@dataclass(slots=True, kw_only=True)
class GenerationDraft:
    """What becomes known of a generation while it runs. Belongs to the thread that answers."""

    operation: Literal["chat", "text_completion"]
    model: str
    request_model: str = ""
    stream: bool = False
    choices: int = 0
    max_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    error_code: str = ""
    failed: bool = False
    left: bool = False
    """Whether the client left before the end."""
    begun: bool = False
    """See :class:`GenerationRecord`."""
    has_begun: Callable[[], bool] = bool
    """Asked when there is an error: the engine may begin while the client is told that it did not."""
    report: Callable[[], EngineReport] = EngineReport
    """Asked once, at the end."""
    content: Content | None = None

    def fail(self, error: errors.PharosError) -> None:
        """Note the error that the client is told."""
        self.error_code = error.code or error.type
        self.failed = error.status >= 500 and not isinstance(error, errors.RefusedError)  # noqa: PLR2004 - HTTP
        self.begun = self.has_begun()

    def record(self) -> GenerationRecord:
        """Return the record; the engine is asked for its report now."""
        engine = self.report()
        return GenerationRecord(
            operation=self.operation,
            model=self.model,
            request_model=self.request_model,
            stream=self.stream,
            choices=self.choices,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            finish_reason=self._finish_reason(engine),
            error_code=self.error_code,
            failed=self.failed,
            begun=self.begun,
            engine=engine,
            content=self.content,
        )

    def _finish_reason(self, engine: EngineReport) -> FinishReason:
        """Return how it ended: one word, also for several choices."""
        if self.error_code:
            refused = self.error_code in REFUSED_CODES or self.error_code in _REFUSALS
            return "refused" if refused and not self.begun else "error"
        if self.left or len(engine.endings) < self.choices or "cancelled" in engine.endings:
            return "cancelled"
        return "length" if "length" in engine.endings else "stop"


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP request."""

    request_id: str
    method: str
    """One of the known methods, or ``_OTHER``."""
    route: str
    """The rule of the route; empty where there is none."""
    status: int
    """What the client saw; 499 where it left before there was any."""
    started_at: float
    ended_at: float
    """When the last byte was written, or the client had left."""
    client_left: bool = False
    error_code: str = ""
    failed: bool = False
    """Whether the server is at fault."""
    generation: GenerationRecord | None = None

    @property
    def error_type(self) -> str:
        """The code of the error that the client was told, or that it left; empty without either."""
        if self.generation and self.generation.error_type:
            return self.generation.error_type
        return CLIENT_GONE if self.client_left and not self.error_code else self.error_code

    @property
    def refusal(self) -> str:
        """What refused the request before anything was started; empty where nothing did."""
        if self.generation is not None and self.generation.begun:
            return ""
        return _REFUSALS.get(self.error_code, "")

    @property
    def seconds(self) -> float:
        """From the request's arrival to its end."""
        return self.ended_at - self.started_at

    @property
    def first_token_seconds(self) -> float:
        """From the request's arrival to when its first token was made; 0 without one."""
        engine = self.generation.engine if self.generation else None
        return engine.first_token_at - self.started_at if engine and engine.first_token_at else 0.0
