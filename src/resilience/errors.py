"""The exception tree: what a caller catches, and what a client is told.

A leaf is a cause; a node is what a caller catches. Every leaf knows its HTTP
status, its OpenAI error ``type`` and ``code``, and whether a retry can help::

    PharosError
    ├── RequestError                    the request is at fault; a retry does not help
    │   ├── InvalidRequestError         400 invalid_request_error
    │   │   ├── UnsupportedFieldError   400 invalid_request_error / unsupported_parameter
    │   │   ├── ContextLengthError      400 invalid_request_error / context_length_exceeded
    │   │   └── RequestTooLargeError    400 invalid_request_error / request_too_large
    │   ├── AuthenticationError         401 authentication_error / invalid_api_key
    │   ├── HostForbiddenError          403 permission_error / host_forbidden
    │   ├── OriginForbiddenError        403 permission_error / origin_forbidden
    │   ├── MetricsForbiddenError       403 permission_error / metrics_forbidden
    │   ├── ModelNotFoundError          404 not_found_error / model_not_found
    │   ├── RouteNotFoundError          404 not_found_error / route_not_found
    │   ├── MethodNotAllowedError       405 invalid_request_error / method_not_allowed
    │   ├── BodyTooLargeError           413 invalid_request_error / body_too_large
    │   ├── MediaTypeError              415 invalid_request_error / unsupported_media_type
    │   └── HeadersTooLargeError        431 invalid_request_error / headers_too_large
    ├── RefusedError                    nothing was started; come back after ``retry_after``
    │   ├── RateLimitError              429 rate_limit_error / rate_limit_exceeded
    │   ├── QueueFullError              503 overloaded_error / queue_full
    │   ├── QueueTimeoutError           503 overloaded_error / queue_timeout
    │   ├── MemoryShortError            503 overloaded_error / memory
    │   ├── StorageFullError            503 overloaded_error / storage_full
    │   ├── DrainingError               503 overloaded_error / draining
    │   └── EngineUnavailableError      503 overloaded_error / engine_unavailable
    ├── GenerationError                 accepted, then failed
    │   ├── EngineDiedError             503 server_error / engine_died
    │   ├── OOMError                    503 server_error / out_of_memory
    │   ├── EngineFailureError          500 server_error / engine_failure
    │   ├── ShutdownError               503 server_error / shutdown
    │   └── DeadlineExceededError       504 server_error / deadline_exceeded
    ├── InternalError                   500 server_error / internal_error
    ├── CacheError                      the prompt cache failed; the request goes on without it
    └── ModelError                      the operator's model cannot be served; never sent to a client
        └── NetworkError                a download or a file access failed, also when tried again

Messages are composed here or by the raiser from values that are safe to show:
never from the text of another exception, which may hold paths or secrets.
"""

from __future__ import annotations

import errno
from typing import ClassVar, Self

__all__ = [
    "AuthenticationError",
    "BodyTooLargeError",
    "CacheError",
    "ContextLengthError",
    "DeadlineExceededError",
    "DrainingError",
    "EngineDiedError",
    "EngineFailureError",
    "EngineUnavailableError",
    "GenerationError",
    "HeadersTooLargeError",
    "HostForbiddenError",
    "InternalError",
    "InvalidRequestError",
    "MediaTypeError",
    "MemoryShortError",
    "MethodNotAllowedError",
    "MetricsForbiddenError",
    "ModelError",
    "ModelNotFoundError",
    "NetworkError",
    "OOMError",
    "OriginForbiddenError",
    "PharosError",
    "QueueFullError",
    "QueueTimeoutError",
    "RateLimitError",
    "RefusedError",
    "RequestError",
    "RequestTooLargeError",
    "RouteNotFoundError",
    "ShutdownError",
    "StorageFullError",
    "UnsupportedFieldError",
]


class PharosError(Exception):
    """Root of every error that Pharos raises on purpose.

    Attributes:
        message: One or two sentences for the person who sees it: what is
            wrong and what to do. Holds no path, key or prompt.
        param: The request field at fault in OpenAI's dotted form
            (``messages[0].role``), or None where no single field is.
        retry_after: Seconds after which a retry makes sense; None where a
            retry of the same request cannot help.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None
    advice: ClassVar[str] = "Try once more; if it fails again, tell the operator the request id."
    """For clients: whether sending the request again can help."""
    retry_seconds: ClassVar[float | None] = None
    """What ``retry_after`` is unless the raiser knows better."""
    is_told: ClassVar[bool] = True
    """Whether a client can get this error; else it is the operator's, or never leaves a room."""
    refusal: ClassVar[str | None] = None
    """What refused the request before anything was started, as metrics name it; else None."""

    def __init__(
        self, message: str, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = self.retry_seconds if retry_after is None else retry_after


class RequestError(PharosError):
    """The request is at fault; sending it again unchanged does not help."""

    status = 400
    type = "invalid_request_error"
    advice = "Change the request: the same one fails again."


class InvalidRequestError(RequestError):
    """A field has a wrong type, shape or range, or the body cannot be read."""

    code = "invalid_value"


class UnsupportedFieldError(InvalidRequestError):
    """A field of the OpenAI API that this server does not offer."""

    code = "unsupported_parameter"


class ContextLengthError(InvalidRequestError):
    """The prompt does not fit the context window."""

    code = "context_length_exceeded"

    def __init__(self, *, prompt_tokens: int, context_length: int) -> None:
        super().__init__(
            f"This model's maximum context length is {context_length} tokens, but the prompt "
            f"has {prompt_tokens} tokens and at least one must be left for the answer. "
            "Shorten the prompt.",
            param="messages",
        )
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length


class RequestTooLargeError(InvalidRequestError):
    """Prompt and answer together can never fit into the memory that the server may use."""

    code = "request_too_large"
    refusal = "too_large"

    def __init__(self, *, prompt_tokens: int, largest_tokens: int) -> None:
        super().__init__(
            f"The largest request that this server's memory can hold has {largest_tokens} tokens "
            f"of prompt and answer together. This prompt has {prompt_tokens}. Shorten the prompt, "
            "or ask for a shorter answer.",
            param="messages",
        )
        self.prompt_tokens = prompt_tokens
        self.largest_tokens = largest_tokens


class AuthenticationError(RequestError):
    """The API key is missing or wrong."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class HostForbiddenError(RequestError):
    """The header Host names a host that this server does not go by."""

    status = 403
    type = "permission_error"
    code = "host_forbidden"


class OriginForbiddenError(RequestError):
    """A web page of another origin, which was not allowed, sent the request."""

    status = 403
    type = "permission_error"
    code = "origin_forbidden"


class MetricsForbiddenError(RequestError):
    """The client may not read the server's metrics."""

    status = 403
    type = "permission_error"
    code = "metrics_forbidden"


class ModelNotFoundError(RequestError):
    """The request names a model that this server does not serve."""

    status = 404
    type = "not_found_error"
    code = "model_not_found"


class RouteNotFoundError(RequestError):
    """No route has this path."""

    status = 404
    type = "not_found_error"
    code = "route_not_found"


class MethodNotAllowedError(RequestError):
    """The route exists, but not with this method."""

    status = 405
    code = "method_not_allowed"


class BodyTooLargeError(RequestError):
    """The body is larger than the configured limit."""

    status = 413
    code = "body_too_large"


class MediaTypeError(RequestError):
    """The body is not declared as JSON in UTF-8."""

    status = 415
    code = "unsupported_media_type"


class HeadersTooLargeError(RequestError):
    """The request line and the headers are larger than the server reads."""

    status = 431
    code = "headers_too_large"


class RefusedError(PharosError):
    """Nothing was started. The same request can succeed after ``retry_after`` seconds."""

    status = 503
    type = "overloaded_error"
    advice = "Nothing was started: send it again after `Retry-After` seconds."
    retry_seconds = 1.0


class QueueFullError(RefusedError):
    """Batch and queue are at their bounds."""

    code = "queue_full"
    refusal = "queue_full"


class RateLimitError(RefusedError):
    """The client has used up its requests or tokens per minute."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    refusal = "rate"


class QueueTimeoutError(RefusedError):
    """The request waited too long for its turn, and was taken back before it began."""

    code = "queue_timeout"
    refusal = "deadline"


class MemoryShortError(RefusedError):
    """The engine is out of memory, and what it could free was not enough."""

    code = "memory"
    refusal = "memory"


class StorageFullError(RefusedError):
    """The server has no room left on disk, or no file left, to hold a large body."""

    code = "storage_full"


class DrainingError(RefusedError):
    """The server is shutting down and takes no new work."""

    retry_seconds = 5.0
    code = "draining"
    refusal = "draining"


class EngineUnavailableError(RefusedError):
    """The engine is loading or down, so nothing can be generated now."""

    code = "engine_unavailable"
    refusal = "engine_down"


class GenerationError(PharosError):
    """The request was accepted and then failed; text already sent stays valid."""


class EngineDiedError(GenerationError):
    """The engine ended more often than a request may survive, or for good."""

    status = 503
    retry_seconds = 1.0
    code = "engine_died"
    advice = "Send it again after `Retry-After` seconds; the engine is started again."


class OOMError(GenerationError):
    """There was not enough memory to go on with the request, whatever was freed for it."""

    status = 503
    retry_seconds = 5.0
    code = "out_of_memory"
    advice = "Send it again after `Retry-After` seconds; a shorter prompt or answer needs less."


class EngineFailureError(GenerationError):
    """The engine reported that this request failed; the engine goes on."""

    code = "engine_failure"


class ShutdownError(GenerationError):
    """The server was stopped, and its time to finish was over before the request was done."""

    status = 503
    retry_seconds = 5.0
    code = "shutdown"
    advice = "Send it again after `Retry-After` seconds; what a stream has sent is valid."


class DeadlineExceededError(GenerationError):
    """The request was not done within the time that it was given."""

    status = 504
    code = "deadline_exceeded"
    advice = "Ask for less, or allow more time; what a stream has sent is valid."


class InternalError(PharosError):
    """An unexpected error inside the server; its text stays in the server's log."""

    code = "internal_error"


class CacheError(PharosError):
    """The prompt cache failed. The request that met it is computed without the cache.

    Attributes:
        operation: What failed: ``lookup``, ``load``, ``extract`` or ``store``.
        corruption: What of an entry was not as stored: ``format`` or ``content``; else empty.
    """

    code = "cache_error"
    is_told = False

    def __init__(self, message: str, *, operation: str, corruption: str = "") -> None:
        super().__init__(message)
        self.operation = operation
        self.corruption = corruption


class ModelError(PharosError):
    """The configured model is missing, damaged or of an unsupported kind; for the operator."""

    code = "model_error"
    is_told = False


class NetworkError(ModelError):
    """A download, or the access to a file, failed each time that it was tried.

    Raised at the end of retries; the last attempt's error is its cause.
    """

    code = "network_error"

    @classmethod
    def after(cls, operation: str, attempts: int, error: Exception) -> Self:
        """Return the error of an operation that was tried so often, the last time with ``error``."""
        kind = type(error).__name__
        if isinstance(error, OSError) and error.errno is not None:
            kind = f"{kind} {errno.errorcode.get(error.errno, error.errno)}"
        return cls(f"The {operation} failed {attempts} times, the last time with {kind}.")
