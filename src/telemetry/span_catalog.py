"""Every span of a request, declared once: its attributes and events, and what they mean.

:mod:`.request_span` and :mod:`.spans` make them, tests hold what is made against these
declarations, and ``docs/reference/traces-and-logs.md`` is generated from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from . import attributes as a

__all__ = ["SPANS", "SpanAttribute", "SpanEvent", "SpanKind"]


@dataclass(frozen=True, slots=True)
class SpanAttribute:
    """One attribute of a span or of an event."""

    name: str
    type: Literal["string", "int", "double", "string[]"]
    meaning: str
    when: str = ""
    """Which spans have it; empty where all do."""


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """One event of a span."""

    name: str
    meaning: str
    attributes: tuple[SpanAttribute, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanKind:
    """What all spans of one kind have in common."""

    key: str
    """The first word of the names of such spans; that of the HTTP span is a method."""
    title: str
    names: str
    kind: Literal["SERVER", "INTERNAL"]
    meaning: str
    status: str
    """When it is ``Error``; else it is unset."""
    attributes: tuple[SpanAttribute, ...]
    events: tuple[SpanEvent, ...] = ()


_ERROR = "the request did not end well"
_READ = "the request was read as far as that"
_OPTED_IN = (
    "the operator opted in, the request was read, its model is served, and it is not too large"
)
_SAMPLE = "is in the [histogram](metrics.md#requests) of its name"
_CODE = "The `code` of the [error](errors.md) that the client was told, or `client_gone`"

_HTTP = SpanKind(
    key="HTTP",
    title="HTTP server span",
    names="`{method} {route}`, such as `POST /v1/chat/completions`; `{method}` where no route matched",
    kind="SERVER",
    meaning="Every request has one, from its arrival to its last byte, or to the client's leaving. Its "
    "parent is the caller's span, where the request has a `traceparent`.",
    status="the answer is a 5xx, refusals included, or the server failed after a stream had begun",
    attributes=(
        SpanAttribute(a.HTTP_METHOD.name, "string", f"A known method, or `{a.OTHER}`."),
        SpanAttribute("url.scheme", "string", "`http`: TLS ends before the server."),
        SpanAttribute(
            a.HTTP_STATUS.name,
            "int",
            "What the client saw; 499 where it left before there was a status.",
        ),
        SpanAttribute(
            "pharos.request.id",
            "string",
            "The `X-Request-Id` of the answer, and of the access line.",
        ),
        SpanAttribute(
            a.HTTP_ROUTE.name, "string", "The route's rule, never the path.", "a route matched"
        ),
        SpanAttribute(a.ERROR_TYPE.name, "string", f"{_CODE}.", _ERROR),
    ),
)

_GENERATION = SpanKind(
    key="generation",
    title="Generation span",
    names="`chat {model}` or `text_completion {model}`, with the first served name",
    kind="INTERNAL",
    meaning="Every [generation request](../explanation/telemetry.md#what-each-figure-says-and-does-not) "
    "has one within its HTTP span, with the same beginning and end. Its figures are of all prompts and "
    "choices together.",
    status="the server is at fault, which it is not with a refusal",
    attributes=(
        SpanAttribute(a.GEN_AI_OPERATION.name, "string", "`chat` or `text_completion`."),
        SpanAttribute(a.GEN_AI_PROVIDER.name, "string", "`mlx`."),
        SpanAttribute(a.GEN_AI_RESPONSE_MODEL.name, "string", "The first served name."),
        SpanAttribute(
            a.GEN_AI_RESPONSE_FINISH_REASONS,
            "string[]",
            "How each choice ended that did: `stop`, `length` or `cancelled`. Where none did, the "
            "`finish_reason` alone.",
        ),
        SpanAttribute(
            a.GEN_AI_INPUT_TOKENS,
            "int",
            "Tokens of prompts that were worked through, cached ones included.",
        ),
        SpanAttribute(a.GEN_AI_OUTPUT_TOKENS, "int", "Tokens that were generated."),
        SpanAttribute(
            a.GEN_AI_CACHED_TOKENS, "int", "Tokens of prompts that came from the prompt cache."
        ),
        SpanAttribute(
            a.FINISH_REASON.name,
            "string",
            "How the whole request ended, in one word: "
            + ", ".join(f"`{value}`" for value in a.FINISH_REASON.values)
            + ".",
        ),
        SpanAttribute(
            a.GEN_AI_REQUEST_MODEL.name,
            "string",
            f"The served name that was asked for; `{a.OTHER}` for any other.",
            _READ,
        ),
        SpanAttribute(
            a.GEN_AI_MAX_TOKENS,
            "int",
            "Tokens of each answer at most.",
            f"{_READ}, and it or the server's settings have a limit",
        ),
        SpanAttribute(
            a.GEN_AI_TEMPERATURE,
            "double",
            "As it was used: the request's, else the model's advice.",
            _READ,
        ),
        SpanAttribute(
            a.GEN_AI_TOP_P,
            "double",
            "As it was used: the request's, else the model's advice.",
            _READ,
        ),
        SpanAttribute(a.ERROR_TYPE.name, "string", f"{_CODE}.", _ERROR),
        SpanAttribute(
            a.GEN_AI_INPUT_MESSAGES, "string", "Content: the prompts, as JSON.", _OPTED_IN
        ),
        SpanAttribute(
            a.GEN_AI_OUTPUT_MESSAGES, "string", "Content: the answers, as JSON.", _OPTED_IN
        ),
    ),
    events=(
        SpanEvent(
            "prompt_cache.lookup",
            "The first prefill step began, and it was known what the prompt cache had.",
            (
                SpanAttribute(
                    a.GEN_AI_CACHED_TOKENS,
                    "int",
                    "Tokens of prompts that came from the prompt cache.",
                ),
            ),
        ),
        SpanEvent("first_token", "The first token was made."),
        SpanEvent(
            "engine.lost",
            "The engine ended while the request ran, which went on in the next one.",
            (
                SpanAttribute(
                    a.RESTART_REASON.name,
                    "string",
                    "How the engine had ended: "
                    + ", ".join(f"`{value}`" for value in a.RESTART_REASON.values)
                    + ".",
                ),
            ),
        ),
        SpanEvent("resumed", "The next engine took the request."),
    ),
)


def _phase(name: str, meaning: str) -> SpanKind:
    return SpanKind(
        key=name,
        title=f"Span {name}",
        names=f"`{name}`",
        kind="INTERNAL",
        meaning=meaning,
        status="the phase was cut off, and the server is at fault",
        attributes=(
            SpanAttribute(
                a.ERROR_TYPE.name,
                "string",
                f"What cut it off, as of the generation. A phase without it {_SAMPLE}.",
                "the phase did not come to an end of its own",
            ),
        ),
    )


SPANS = (
    _HTTP,
    _GENERATION,
    _phase("queue", "From when the engine took the request to its first prefill step."),
    _phase("prefill", "From the first prefill step to the first token."),
    _phase("decode", "From the first token to the last token of every choice."),
)
"""In the order of the reference, which is that of a trace."""
