"""The attributes of metrics and spans: their names, and the closed set of what each may be.

No value ever comes from a request as it is. What a client can choose (a method,
a model) passes :meth:`Attribute.close` or :func:`close_model`, which answer
:data:`OTHER` for whatever is not in the set; so 10,000 invented values are one
series. Names follow the OpenTelemetry semantic conventions where one exists;
those of GenAI are owned here, because the packages' copies are deprecated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..resilience import errors

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = [
    "ACTION",
    "BREAKER_NAME",
    "BREAKER_STATE",
    "CACHE_ERROR_KIND",
    "CORRUPTION_KIND",
    "DEVICE",
    "DROP_REASON",
    "DTYPE",
    "ERROR_TYPE",
    "EVICTION_KIND",
    "FINISH_REASON",
    "GEN_AI_CACHED_TOKENS",
    "GEN_AI_INPUT_MESSAGES",
    "GEN_AI_INPUT_TOKENS",
    "GEN_AI_MAX_TOKENS",
    "GEN_AI_OPERATION",
    "GEN_AI_OUTPUT_MESSAGES",
    "GEN_AI_OUTPUT_TOKENS",
    "GEN_AI_PROVIDER",
    "GEN_AI_REQUEST_MODEL",
    "GEN_AI_RESPONSE_FINISH_REASONS",
    "GEN_AI_RESPONSE_MODEL",
    "GEN_AI_TEMPERATURE",
    "GEN_AI_TOP_P",
    "HTTP_METHOD",
    "HTTP_ROUTE",
    "HTTP_STATUS",
    "LOOKUP_RESULT",
    "MEMORY_KIND",
    "MLX_LM_VERSION",
    "MLX_VERSION",
    "MODEL",
    "OTHER",
    "PROCESS",
    "REFUSAL_REASON",
    "REQUEST_TOKEN_TYPE",
    "RESTART_REASON",
    "RETRY_OPERATION",
    "RETRY_OUTCOME",
    "SIGNAL",
    "THREAD_STATE",
    "TIER",
    "TOKEN_TYPE",
    "TRANSITION_TO",
    "Attribute",
    "close_model",
]

OTHER = "_OTHER"
"""What stands for a value that is not in the set; the name is the semantic conventions' own."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of an instrument."""

    name: str
    values: tuple[str, ...] = ()
    """All that it can be; empty where the set is the server's own configuration or code."""
    source: str = ""
    """Where the values come from, if they are not listed."""

    def close(self, value: str) -> str:
        """Return the value if it is in the set, else :data:`OTHER`."""
        return value if value in self.values else OTHER


def close_model(name: str, served: Collection[str]) -> str:
    """Return a served model name as it is, and :data:`OTHER` for whatever else a client sent."""
    return name if name in served else OTHER


def _error_codes(kind: type[errors.PharosError]) -> Iterator[str]:
    if kind.code is not None and kind.is_told:
        yield kind.code
    for child in kind.__subclasses__():
        yield from _error_codes(child)


_CONFIGURED = f"the configured served names, and `{OTHER}` for what a request made up"
_ENGINE = "what the engine reported when it had loaded"

HTTP_METHOD = Attribute(
    "http.request.method",
    ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", OTHER),
)
HTTP_ROUTE = Attribute(
    "http.route", source="the rules of the server's routes; absent where none matched"
)
HTTP_STATUS = Attribute(
    "http.response.status_code",
    source="the statuses that the server sends; 499 where the client left before there was one",
)
ERROR_TYPE = Attribute(
    "error.type",
    (*sorted(set(_error_codes(errors.PharosError))), "client_gone", OTHER),
)
"""The ``code`` that the client sees in an error; absent where all went well."""

GEN_AI_OPERATION = Attribute("gen_ai.operation.name", ("chat", "text_completion"))
GEN_AI_PROVIDER = Attribute("gen_ai.provider.name", ("mlx",))
GEN_AI_REQUEST_MODEL = Attribute(
    "gen_ai.request.model",
    source=f"{_CONFIGURED}; `{OTHER}` where another was asked for (a 404), and absent where the request "
    "was not read as far as that (a 400, or a refusal before it)",
)
GEN_AI_RESPONSE_MODEL = Attribute("gen_ai.response.model", source=_CONFIGURED)

MODEL = Attribute("model", source=_CONFIGURED)
FINISH_REASON = Attribute(
    "finish_reason", ("stop", "length", "tool_calls", "cancelled", "refused", "error")
)
REQUEST_TOKEN_TYPE = Attribute("type", ("input", "output"))
TOKEN_TYPE = Attribute("type", ("input_computed", "input_cached", "output"))
REFUSAL_REASON = Attribute(
    "reason",
    ("queue_full", "memory", "too_large", "rate", "deadline", "draining", "engine_down", OTHER),
)
"""The ``refusal`` of the error that the client was told."""
LOOKUP_RESULT = Attribute("result", ("hit", "miss", "bypass"))
TIER = Attribute("tier", ("ram", "disk"))
EVICTION_KIND = Attribute("kind", ("capacity", "memory"))
CACHE_ERROR_KIND = Attribute("kind", ("lookup", "load", "extract", "store", "evict"))
CORRUPTION_KIND = Attribute("kind", ("checksum", "format", "content"))
RESTART_REASON = Attribute(
    "reason",
    ("exit", "SIGABRT", "SIGBUS", "SIGKILL", "SIGSEGV", "SIGTERM", "hang", "out_of_memory", OTHER),
)
MEMORY_KIND = Attribute("kind", ("mlx_active", "mlx_cache", "mlx_peak"))
PROCESS = Attribute("process", ("server", "engine"))
ACTION = Attribute("action", ("buffer_cache", "prompt_cache", "shrink", "requeue", "refuse"))
BREAKER_NAME = Attribute("name", source="the breakers of the server's own code")
BREAKER_STATE = Attribute("state", ("closed", "half_open", "open"))
TRANSITION_TO = Attribute("to", BREAKER_STATE.values)
RETRY_OPERATION = Attribute("operation", source="the retried operations of the server's own code")
RETRY_OUTCOME = Attribute("outcome", ("retried", "succeeded", "given_up"))
THREAD_STATE = Attribute("state", ("busy", "idle"))
SIGNAL = Attribute("signal", ("traces", "metrics", "logs"))
DROP_REASON = Attribute("reason", ("queue_full", "export_failed", "rejected", "shutdown"))
DEVICE = Attribute("device", source=_ENGINE)
DTYPE = Attribute("dtype", source=_ENGINE)
MLX_VERSION = Attribute("mlx_version", source=_ENGINE)
MLX_LM_VERSION = Attribute("mlx_lm_version", source=_ENGINE)

# Of spans alone: they may be numbers or ids, since a span is no series.
GEN_AI_RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
GEN_AI_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GEN_AI_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
GEN_AI_CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
GEN_AI_MAX_TOKENS = "gen_ai.request.max_tokens"
GEN_AI_TEMPERATURE = "gen_ai.request.temperature"
GEN_AI_TOP_P = "gen_ai.request.top_p"
GEN_AI_INPUT_MESSAGES = "gen_ai.input.messages"
"""Content: only where the operator opted in."""
GEN_AI_OUTPUT_MESSAGES = "gen_ai.output.messages"
"""Content: only where the operator opted in."""
