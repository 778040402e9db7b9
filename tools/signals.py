"""Write the reference of spans and of the log's lines, from what makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

from mlx_pharos.telemetry.content import CAPTURE_VARIABLE, CONTENT_LIMIT, MESSAGE_COST
from mlx_pharos.telemetry.log import LINE_FIELDS
from mlx_pharos.telemetry.request_line import REQUESTS, RequestLine
from mlx_pharos.telemetry.span_catalog import SPANS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mlx_pharos.telemetry.span_catalog import SpanAttribute, SpanKind

__all__ = ["NAMES", "RESOURCE", "line_fields", "page"]

_HEAD = """# Traces and the log

Every name that spans and lines of the log have, with its type, its unit and when it is there. What the
figures count is said in [what the numbers mean](../explanation/telemetry.md), how to send them to a
collector in [see what the server does](../how-to/observe.md), and the [metrics](metrics.md) have a page
of their own.

All of a request's telemetry is made of one record at its end, so a trace is sent when the request is
over. Times of spans are ns since 1970, all other times are seconds. Tokens are the engine's.
"""

_SPANS = f"""## Spans

A trace of a generation request has up to five spans:

    POST /v1/chat/completions        SERVER
    └── chat {{model}}                 INTERNAL
        ├── queue                    INTERNAL
        ├── prefill                  INTERNAL
        └── decode                   INTERNAL

Any other request has the first alone. A phase has a span if it was begun, also where it was cut off.
Spans have no links, and their scope is `mlx_pharos` with the server's version. The status is `Error` or
unset, without a description.

No attribute holds text from a request, but for the content that the operator opts in to with
`{CAPTURE_VARIABLE}`: of the prompts and of the answers of each request the first {CONTENT_LIMIT:,}
characters, in which every message counts as {MESSAGE_COST} more. It is a list of messages as JSON in a
string, in the form of the semantic conventions:

```json
[{{"role": "user", "parts": [{{"type": "text", "content": "What is the capital of France?"}}]}}]
```

A message that was cut ends in `…`, an answer has its `finish_reason`, and a prompt of token ids is
their number.
"""

_LINES = """## Other lines of the log

A line in JSON is one object. These are the fields of every line but access lines; a library may add
fields of its own. What was said before the log was set up, such as a warning about a setting or that a
model is fetched, is plain text (`pharos: warning: …`), and so is what the engine process and native
libraries write to standard error.
"""

_ACCESS = f"""## The access line

Each request has one, when it is over. `event` is `request`, `logger` is `{REQUESTS}`, and `level` is
`error` where `failed` is true or the status is 500, `warning` for any other 5xx, and else `info`. It
has `event`, `level` and `logger`, these fields, and `timestamp`. What says nothing is left out.
"""

_AFTER = """On a terminal the same fields are `name=value` after the message.

With `OTEL_LOGS_EXPORTER=otlp` each line is a log record too: `event` is its body, `level` its severity
(number and text), `logger` its scope, `timestamp` its time; `trace_id` and `span_id` are the record's
own, and all other fields are attributes of the same names. Of an exception it has the kind alone, as
`exception.type`.
"""

_MAPPING = """## The same thing by its names

A label at `/metrics` is the attribute of a metric with `_` for `.`.
"""

_ENDS = """
- `error_code` is what the client was told, and `error.type` the same code. Where the client left before
  it was told anything, `error.type` is `client_gone`, and the line has `client_left` and no `error_code`.
- `finish_reason` is one word for the whole request, the same everywhere.
  `gen_ai.response.finish_reasons` is a list with an entry for each choice that ended: with `n=2`,
  `["stop", "length"]` is a request whose `finish_reason` is `length`.
- `failed` is the server's fault alone. The generation span is an error then; the HTTP span is one also
  where a refusal was answered with 503.
"""


NAMES = (
    ("`request_id`", "`pharos.request.id`", ""),
    ("`trace_id`, `span_id`", "the ids of the HTTP span", "exemplars"),
    ("`method`", "`http.request.method`", "`http.request.method`"),
    ("`route`", "`http.route`", "`http.route`"),
    ("`status`", "`http.response.status_code`", "`http.response.status_code`"),
    ("`error_code`, or `client_left`", "`error.type`", "`error.type`"),
    ("`failed`", "the status of the generation span", ""),
    ("`model`", "`gen_ai.response.model`", "`gen_ai.response.model`, `model`"),
    (
        "`finish_reason`",
        "`finish_reason`; for each choice `gen_ai.response.finish_reasons`",
        "`finish_reason`",
    ),
    (
        "`duration_seconds`",
        "the length of the HTTP span and of the generation span",
        "`http.server.request.duration`, `gen_ai.server.request.duration`",
    ),
    ("`queue_seconds`", "the length of the span `queue`", "`pharos.request.queue.duration`"),
    (
        "`first_token_seconds`",
        "the event `first_token`",
        "`gen_ai.server.time_to_first_token`, of requests that ended well",
    ),
    (
        "`prompt_tokens`",
        "`gen_ai.usage.input_tokens`",
        "`pharos.request.tokens` with `type` `input`; `input_computed` and `input_cached` of `pharos.tokens`",
    ),
    (
        "`cached_tokens`",
        "`gen_ai.usage.cache_read.input_tokens`",
        "`pharos.tokens` with `type` `input_cached`",
    ),
    (
        "`completion_tokens`",
        "`gen_ai.usage.output_tokens`",
        "`pharos.request.tokens` and `pharos.tokens` with `type` `output`",
    ),
)
"""The same thing in the log, in traces and among the metrics."""

_RESOURCE = """## The resource

Spans, metrics and log records of a server are of one resource; at `/metrics` it is `target_info`.
`OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` change and add attributes.
"""

RESOURCE = {
    "service.name": "`pharos`, unless it is set",
    "service.version": "the server's version",
    "service.instance.id": "a random one for each start",
    "host.name": "the machine's name",
    "host.arch": "the machine's kind, such as `amd64` or `arm64`",
    "os.type": "`linux` or `darwin`",
    "process.pid": "of the server process",
    "process.runtime.name": "`cpython`",
    "process.runtime.version": "Python's version",
    "telemetry.sdk.language": "`python`",
    "telemetry.sdk.name": "`opentelemetry`",
    "telemetry.sdk.version": "of OpenTelemetry's SDK",
}


class _Field(NamedTuple):
    """A field of a line."""

    name: str
    type: str
    meaning: str
    left_out: str
    """When; empty for never."""


_TYPES = {str: "string", int: "integer", float: "number", bool: "true"}
"""JSON's words; a field that can be true is left out where it is false."""


def line_fields() -> Iterator[_Field]:
    """Yield the fields of the access line, as they are declared."""
    for name, hint in get_type_hints(RequestLine, include_extras=True).items():
        assert get_origin(hint) is Annotated, f"{name} does not say what it means"
        kind, meta = get_args(hint)
        assert isinstance(meta, msgspec.Meta)
        assert meta.extra is not None
        unit = "s" if name.endswith("_seconds") else "tokens" if name.endswith("_tokens") else ""
        words = f"{_TYPES[kind]}, {unit}" if unit else _TYPES[kind]
        yield _Field(name, words, str(meta.description), meta.extra["when"])


def _table(*head: str, rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    for cells in (head, ("---",) * len(head), *rows):
        yield f"| {' | '.join(cells)} |"


def _attributes(attributes: Iterable[SpanAttribute]) -> Iterator[str]:
    return _table(
        "attribute",
        "type",
        "where",
        "what it is",
        rows=(
            (f"`{each.name}`", _span_type(each), each.when or "always", each.meaning)
            for each in attributes
        ),
    )


def _span_type(attribute: SpanAttribute) -> str:
    is_count = attribute.name.endswith("_tokens")
    return f"{attribute.type}, tokens" if is_count else attribute.type


def _span(kind: SpanKind) -> Iterator[str]:
    yield f"### {kind.title}\n"
    yield f"{kind.meaning}\n"
    yield f"- Name: {kind.names}"
    yield f"- Kind: `{kind.kind}`"
    yield f"- Status: `Error` where {kind.status}\n"
    yield from _attributes(kind.attributes)
    yield ""
    if not kind.events:
        return
    yield "Events:\n"
    yield from _table(
        "event",
        "when",
        "attributes",
        rows=(
            (
                f"`{event.name}`",
                event.meaning,
                "<br>".join(f"`{a.name}` ({_span_type(a)}): {a.meaning}" for a in event.attributes),
            )
            for event in kind.events
        ),
    )
    yield ""


def page() -> str:
    """Return docs/reference/traces-and-logs.md, less the note that it is generated."""
    head = ("field", "type", "left out where", "what it is")
    common = (
        (f"`{name}`", "string", left_out or "never", meaning)
        for name, (meaning, left_out) in LINE_FIELDS.items()
    )
    access = (
        (f"`{each.name}`", each.type, each.left_out or "never", each.meaning)
        for each in line_fields()
    )
    resource = ((f"`{name}`", meaning) for name, meaning in RESOURCE.items())
    parts = [_HEAD, _SPANS]
    for kind in SPANS:
        parts += _span(kind)
    parts += [_ACCESS, *_table(*head, rows=access), ""]
    parts += [_LINES, *_table(*head, rows=common), "", _AFTER]
    parts += [_MAPPING, *_table("access line", "trace", "metric", rows=NAMES), _ENDS]
    parts += [_RESOURCE, *_table("attribute", "what it is", rows=resource), ""]
    return "\n".join(parts)
