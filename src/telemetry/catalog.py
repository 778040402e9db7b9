"""Every instrument, declared once: name, kind, unit, buckets and attributes.

:class:`~.instruments.Instruments` makes them from these declarations, the view
for Prometheus takes its names from them, and ``docs/reference/metrics.md`` is
generated from them.

Buckets reach from a data centre's GPU to a small machine's CPU. A bound that
somebody may alert on (0.5 s, 1 s, 5 s, 30 s, 60 s) is a bucket's bound, so that
a share below it is exact.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import attributes as a

if TYPE_CHECKING:
    from .attributes import Attribute

__all__ = ["BY_NAME", "CATALOG", "Instrument", "Kind"]


class Kind(enum.Enum):
    """What an instrument measures, and who calls whom."""

    COUNTER = "counter"
    """A total that only grows, added to once per event."""
    OBSERVABLE_COUNTER = "observable counter"
    """A total that is counted elsewhere and read at collection."""
    UP_DOWN = "up-down counter"
    """A sum over parts that goes both ways, read at collection."""
    GAUGE = "gauge"
    """A state, read at collection."""
    HISTOGRAM = "histogram"
    """Values of the token path and of finished requests, counted as plain integers and read at
    collection: in the catalog's buckets, and exponential where they are pushed."""


@dataclass(frozen=True, slots=True)
class Instrument:
    """The declaration of one instrument."""

    name: str
    kind: Kind
    unit: str
    """In UCUM, as OpenTelemetry wants it: ``s``, ``By``, ``{request}``; ``1`` for a ratio alone,
    because Prometheus' own conversion of OTLP ends such a gauge's name in ``_ratio``."""
    description: str
    attributes: tuple[Attribute, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram where it is not exponential."""

    @property
    def is_total(self) -> bool:
        """Whether it only grows."""
        return self.kind in {Kind.COUNTER, Kind.OBSERVABLE_COUNTER}

    @property
    def is_histogram(self) -> bool:
        """Whether it has buckets."""
        return self.kind is Kind.HISTOGRAM

    @property
    def prometheus_unit(self) -> str:
        """The unit as Prometheus' names have it; empty where they have none."""
        return {"s": "seconds", "By": "bytes", "1": "ratio"}.get(self.unit, "")

    @property
    def prometheus_family(self) -> str:
        """The family's name for Prometheus, without the ``_total`` of a total."""
        name = self.name.replace(".", "_")
        unit = self.prometheus_unit
        return name if not unit or name.endswith(f"_{unit}") else f"{name}_{unit}"

    @property
    def prometheus_name(self) -> str:
        """The name that a query uses."""
        return self.prometheus_family + ("_total" if self.is_total else "")


_SHORT = (0.001, 0.0025, 0.005)
_REQUEST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_FIRST_TOKEN = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600,
)  # fmt: skip
_INTER_TOKEN = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 5,
)  # fmt: skip
_STEP = (*_INTER_TOKEN, 10, 30, 60)
_BATCH = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512)
_RATIO = (0.1, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.25, 1.5, 2, 4)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)

_GEN_AI = (
    a.GEN_AI_OPERATION,
    a.GEN_AI_PROVIDER,
    a.GEN_AI_REQUEST_MODEL,
    a.GEN_AI_RESPONSE_MODEL,
)


def _histogram(
    name: str,
    unit: str,
    buckets: tuple[float, ...],
    description: str,
    *attributes: Attribute,
) -> Instrument:
    return Instrument(name, Kind.HISTOGRAM, unit, description, attributes, buckets)


def _counter(name: str, unit: str, description: str, *attributes: Attribute) -> Instrument:
    return Instrument(name, Kind.COUNTER, unit, description, attributes)


def _total(name: str, unit: str, description: str, *attributes: Attribute) -> Instrument:
    return Instrument(name, Kind.OBSERVABLE_COUNTER, unit, description, attributes)


def _gauge(name: str, unit: str, description: str, *attributes: Attribute) -> Instrument:
    return Instrument(name, Kind.GAUGE, unit, description, attributes)


_HTTP = (
    _histogram(
        "http.server.request.duration", "s", (*_SHORT, *_REQUEST),
        "Time from a request's arrival to its last byte, or to the client's leaving.",
        a.HTTP_METHOD, a.HTTP_ROUTE, a.HTTP_STATUS, a.ERROR_TYPE,
    ),
    Instrument(
        "http.server.active_requests", Kind.UP_DOWN, "{request}",
        "Requests that are being answered.", (a.HTTP_METHOD,),
    ),
    _gauge("pharos.http.threads", "{thread}", "Threads that answer requests.", a.THREAD_STATE),
    _gauge("pharos.http.queue.depth", "{request}", "Requests that wait for a thread."),
)  # fmt: skip

_REQUESTS = (
    _histogram(
        "gen_ai.server.request.duration", "s", _REQUEST,
        "Time from a generation request's arrival to its end, failed ones included.",
        *_GEN_AI, a.ERROR_TYPE,
    ),
    _histogram(
        "gen_ai.server.time_to_first_token", "s", _FIRST_TOKEN,
        "Time from a generation request's arrival until the engine had made its first token, successful "
        "ones only.",
        *_GEN_AI,
    ),
    _histogram(
        "gen_ai.server.time_per_output_token", "s", _INTER_TOKEN,
        "Mean time in which the engine made each token of a request after the first, successful ones "
        "only.",
        *_GEN_AI,
    ),
    _histogram(
        "pharos.request.queue.duration", "s", (*_SHORT, *_REQUEST),
        "Time that an accepted request waited for a place in the batch.", a.MODEL,
    ),
    _histogram(
        "pharos.request.prefill.duration", "s", (*_SHORT, *_REQUEST),
        "Time from a request's first prefill step to its first token.", a.MODEL,
    ),
    _histogram(
        "pharos.request.decode.duration", "s", (*_SHORT, *_REQUEST),
        "Time from a request's first token to its last.", a.MODEL,
    ),
    _histogram(
        "pharos.inter_token.duration", "s", _INTER_TOKEN,
        "Time between two tokens of a sequence, on the engine's clock.", a.MODEL,
    ),
    _counter(
        "pharos.requests.finished", "{request}",
        "Generation requests that ended: each of them once, whatever its end was. What is refused while "
        "it is read, or for its host, origin or key, is none.",
        a.MODEL, a.FINISH_REASON, a.ERROR_TYPE,
    ),
    _gauge("pharos.requests.running", "{request}", "Sequences in prefill or decode.", a.MODEL),
    _gauge(
        "pharos.requests.queued", "{request}",
        "Sequences that wait for a place in the batch, or for an engine.", a.MODEL,
    ),
    _histogram(
        "pharos.request.tokens", "{token}", _TOKENS,
        "Tokens of a request's prompt and answer.", a.MODEL, a.REQUEST_TOKEN_TYPE,
    ),
    _histogram(
        "pharos.request.longest_choice", "{token}", _TOKENS,
        "Tokens of the longest choice of a request.", a.MODEL,
    ),
    _counter(
        "pharos.tokens", "{token}",
        "Tokens: prompts' computed or taken from the prompt cache, and answers'.",
        a.MODEL, a.TOKEN_TYPE,
    ),
    _counter(
        "pharos.admission.refusals", "{request}",
        "Generation requests that were turned away before anything was started.", a.REFUSAL_REASON,
    ),
    _total(
        "pharos.requests.preempted", "{sequence}",
        "Sequences that went back to the queue because memory had run short.",
    ),
    _counter(
        "pharos.requests.resumed", "{request}",
        "Requests that went on after the engine had been restarted.", a.RESTART_REASON,
    ),
)  # fmt: skip

_PROMPT_CACHE = (
    _total("pharos.prompt_cache.lookups", "{lookup}", "Prompts looked up.", a.LOOKUP_RESULT),
    _gauge("pharos.prompt_cache.size", "By", "KV state that the entries hold.", a.TIER),
    _gauge("pharos.prompt_cache.entries", "{entry}", "Entries.", a.TIER),
    _gauge("pharos.prompt_cache.limit", "By", "KV state that the entries may hold.", a.TIER),
    _total(
        "pharos.prompt_cache.evictions", "{entry}",
        "Entries that went: to make room for newer ones (capacity), or because requests or the machine "
        "needed their memory.", a.TIER, a.EVICTION_KIND,
    ),
    _counter(
        "pharos.prompt_cache.errors", "{error}",
        "Operations of the prompt cache that failed.", a.TIER, a.CACHE_ERROR_KIND,
    ),
    _counter(
        "pharos.prompt_cache.corruptions", "{entry}",
        "Entries that were not what had been stored, and were not used.",
        a.TIER, a.CORRUPTION_KIND,
    ),
)  # fmt: skip

_ENGINE = (
    _gauge("pharos.kv.usage", "1", "Share of the reserved KV state that holds tokens."),
    _gauge("pharos.kv.reserved", "By", "KV state that is allocated for running sequences."),
    _gauge("pharos.engine.up", "", "1 while the engine can generate, else 0."),
    _gauge(
        "pharos.engine.info", "",
        "Always 1; its attributes say what is served, and on what.",
        a.MODEL, a.DEVICE, a.DTYPE, a.MLX_VERSION, a.MLX_LM_VERSION,
    ),
    _gauge(
        "pharos.engine.last_progress.age", "s",
        "Time since the engine's last message; 0 while there is nothing to do.",
    ),
    _histogram(
        "pharos.engine.batch.size", "{sequence}", _BATCH,
        "Sequences in a step.",
    ),
    _histogram(
        "pharos.engine.step.duration", "s", _STEP, "Time of a step.",
    ),
    _counter(
        "pharos.engine.restarts", "{restart}",
        "Times that the engine was started again, by how it had ended.", a.RESTART_REASON,
    ),
)  # fmt: skip

_MEMORY = (
    _gauge("pharos.memory.usage", "By", "Memory of MLX, as MLX counts it.", a.MEMORY_KIND),
    Instrument(
        "process.memory.usage", Kind.UP_DOWN, "By", "Resident set of a process.", (a.PROCESS,)
    ),
    _counter(
        "pharos.memory.reclaimed", "By",
        "Memory that was measured to be free after it had run short.", a.ACTION,
    ),
    _gauge("pharos.ledger.reserved", "By", "Memory that is promised to admitted requests."),
    _gauge("pharos.ledger.limit", "By", "Memory that may be promised to requests."),
    _histogram(
        "pharos.ledger.prediction.ratio", "1", _RATIO,
        "Peak memory of requests that was measured over a spell of work, as a share of what was "
        "promised to them; above 1 they needed more.",
    ),
)  # fmt: skip

_POLICIES = (
    _gauge(
        "pharos.breaker.state", "", "1 for the state that a breaker is in, else 0.",
        a.BREAKER_NAME, a.BREAKER_STATE,
    ),
    _counter(
        "pharos.breaker.transitions", "{transition}",
        "Changes of a breaker's state.", a.BREAKER_NAME, a.TRANSITION_TO,
    ),
    _counter(
        "pharos.retries", "{attempt}", "Attempts after the first.",
        a.RETRY_OPERATION, a.RETRY_OUTCOME,
    ),
    _total(
        "pharos.telemetry.dropped", "{item}",
        "Spans, data points and log records that did not reach the collector, or that it rejected.",
        a.SIGNAL, a.DROP_REASON,
    ),
)  # fmt: skip

CATALOG = {
    "HTTP": _HTTP,
    "Requests": _REQUESTS,
    "Prompt cache": _PROMPT_CACHE,
    "Engine": _ENGINE,
    "Memory": _MEMORY,
    "Policies": _POLICIES,
}
"""The instruments by group, in the order of the reference."""

BY_NAME = {each.name: each for group in CATALOG.values() for each in group}
