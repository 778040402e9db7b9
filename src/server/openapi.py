"""The OpenAPI document, generated from the same models that read the requests.

A test compares the table of operations with the application's routes, and the
answers of a running server with the schemas.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import models_json_schema

from .. import __version__
from ..telemetry.legacy import CATEGORIES
from .chat_schema import ChatCompletion, ChatCompletionChunk, ChatRequest
from .completion_schema import Completion, CompletionRequest
from .metrics_schema import LegacyMetrics
from .model_schema import ErrorAnswer, Health, Live, Model, ModelList, Ready
from .patience import LONGEST_TIMEOUT, TIMEOUT_HEADER

if TYPE_CHECKING:
    from pydantic import BaseModel

    from .options import ServerOptions

__all__ = ["OPERATIONS", "Operation", "build_document"]

_REFERENCE = "#/components/schemas/{model}"
_RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds after which a retry makes sense.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    }
}
_REQUEST_ID = {
    "X-Request-Id": {
        "description": "The request's id, also in the server's log; the client may choose it.",
        "required": True,
        "schema": {"type": "string"},
    }
}
_ERRORS = {
    400: "The body is not strict JSON, or a field has a wrong type, shape or range.",
    401: "The API key is missing or wrong.",
    403: "The host, the origin or, for metrics, the client is not allowed.",
    404: "No such model is served.",
    413: "The body is larger than the configured limit.",
    415: "The body is not declared as JSON in UTF-8.",
    429: "The client has used up its requests or tokens per minute.",
    500: "The server or the engine failed.",
    503: "Queue full, waited too long, engine loading or down, or the server is shutting down.",
    504: "The request was not done within the time that it was given.",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    name: str
    summary: str
    answer: type[BaseModel] | None
    """None: any JSON object, or one of ``texts`` alone."""
    request: type[BaseModel] | None = None
    chunk: type[BaseModel] | None = None
    """What each event of a stream holds."""
    texts: tuple[str, ...] = ()
    """Media types of answers that are text."""
    parameters: tuple[dict[str, Any], ...] = ()
    errors: tuple[int, ...] = (403, 500)
    other_answers: dict[int, type[BaseModel]] = field(default_factory=dict)
    """Answers with a status of their own that are no errors in OpenAI's shape."""


_LEGACY_PARAMETERS: tuple[dict[str, Any], ...] = (
    {
        "name": "format",
        "in": "query",
        "description": "How the figures are written; JSON where nothing else is asked for.",
        "schema": {"type": "string", "enum": ["json", "prometheus"]},
    },
    {
        "name": "category",
        "in": "query",
        "description": "The sections that are wanted, joined with commas; all by default.",
        "style": "form",
        "explode": False,
        "schema": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "string", "enum": list(CATEGORIES)},
        },
    },
)
_TIMEOUT_PARAMETERS: tuple[dict[str, Any], ...] = (
    {
        "name": TIMEOUT_HEADER,
        "in": "header",
        "description": "Seconds for the whole answer; it can shorten the server's limit.",
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": LONGEST_TIMEOUT},
    },
)
_GENERATE_ERRORS = (400, 401, 403, 404, 413, 415, 429, 500, 503, 504)

OPERATIONS = (
    Operation(
        "post",
        "/v1/chat/completions",
        "createChatCompletion",
        "Answer a conversation.",
        ChatCompletion,
        request=ChatRequest,
        chunk=ChatCompletionChunk,
        parameters=_TIMEOUT_PARAMETERS,
        errors=_GENERATE_ERRORS,
    ),
    Operation(
        "post",
        "/v1/completions",
        "createCompletion",
        "Go on with a text.",
        Completion,
        request=CompletionRequest,
        chunk=Completion,
        parameters=_TIMEOUT_PARAMETERS,
        errors=_GENERATE_ERRORS,
    ),
    Operation(
        "get",
        "/v1/models",
        "listModels",
        "List the served names.",
        ModelList,
        errors=(401, 403, 500),
    ),
    Operation(
        "get",
        "/v1/models/{model}",
        "retrieveModel",
        "Describe a served name.",
        Model,
        errors=(401, 403, 404, 500),
    ),
    Operation("get", "/livez", "livez", "Does the process answer?", Live),
    Operation(
        "get",
        "/readyz",
        "readyz",
        "Is the engine up and the server not draining? Load does not count.",
        Ready,
        other_answers={503: Ready},
    ),
    Operation("get", "/health", "health", "Report the state, for people.", Health),
    Operation(
        "get",
        "/metrics",
        "metrics",
        "Every instrument, for Prometheus.",
        None,
        texts=("text/plain", "application/openmetrics-text"),
        errors=(403, 500),
    ),
    Operation(
        "get",
        "/v1/metrics",
        "legacyMetrics",
        "The figures of the last five minutes.",
        LegacyMetrics,
        texts=("text/plain",),
        parameters=_LEGACY_PARAMETERS,
        errors=(400, 403, 500),
    ),
    Operation("get", "/openapi.json", "openapi", "This document.", None),
)


def build_document(options: ServerOptions) -> dict[str, Any]:
    """Return the document of a server with these options."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, options)
    document: dict[str, Any] = {
        # 3.2 is the first that can describe the events of a stream.
        "openapi": "3.2.0",
        "info": {
            "title": "Pharos",
            "version": __version__,
            "summary": "The OpenAI API, served by MLX",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": _schemas(options)},
    }
    if options.api_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return document


def _schemas(options: ServerOptions) -> dict[str, Any]:
    models: list[type[BaseModel]] = [ErrorAnswer]
    for operation in OPERATIONS:
        models += [m for m in (operation.request, operation.answer, operation.chunk) if m]
        models += operation.other_answers.values()
    _, definitions = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(models)], ref_template=_REFERENCE
    )
    schemas: dict[str, Any] = definitions["$defs"]
    for request in (ChatRequest, CompletionRequest):
        schemas[request.__name__]["properties"]["model"] = {
            "type": "string",
            "enum": list(options.served_model_names),
            "description": "A served name; any other is a 404.",
        }
    return schemas


def _operation(operation: Operation, options: ServerOptions) -> dict[str, Any]:
    document: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": _responses(operation, options),
    }
    if operation.request is not None:
        content = {"application/json": {"schema": _reference(operation.request)}}
        document["requestBody"] = {"required": True, "content": content}
    if operation.parameters:
        document["parameters"] = list(operation.parameters)
    if "{model}" in operation.path:
        document["parameters"] = [
            {
                "name": "model",
                "in": "path",
                "required": True,
                "description": "A served name; slashes in it may stay as they are.",
                "schema": {"type": "string", "minLength": 1},
                "example": options.model_name,
            }
        ]
    if options.api_keys and 401 in operation.errors:  # noqa: PLR2004
        document["security"] = [{"key": []}]
    return document


def _responses(operation: Operation, options: ServerOptions) -> dict[str, Any]:
    schema = _reference(operation.answer) if operation.answer else {"type": "object"}
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if operation.texts:
        texts = {media: {"schema": {"type": "string"}} for media in operation.texts}
        content = texts if operation.answer is None else content | texts
    description = "The answer."
    if operation.chunk is not None:
        content["text/event-stream"] = {"itemSchema": _event(operation.chunk)}
        description = (
            "The answer. With 'stream': true server-sent events: each holds a "
            f"{operation.chunk.__name__}, or an ErrorAnswer where the answer cannot be "
            "finished; the last is [DONE]."
        )
    responses = {"200": {"description": description, "headers": _REQUEST_ID, "content": content}}
    for status, model in operation.other_answers.items():
        responses[str(status)] = _answer("The answer is no.", _reference(model), status)
    for status in operation.errors:
        if status != 401 or options.api_keys:  # noqa: PLR2004
            responses[str(status)] = _answer(_ERRORS[status], _reference(ErrorAnswer), status)
    return responses


def _event(chunk: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of an event of a stream."""
    held = {"anyOf": [_reference(chunk), _reference(ErrorAnswer)]}
    json_text = {"contentMediaType": "application/json", "contentSchema": held}
    return {
        "type": "object",
        "required": ["data"],
        "properties": {"data": {"type": "string", "anyOf": [{"const": "[DONE]"}, json_text]}},
    }


def _answer(description: str, schema: dict[str, Any], status: int) -> dict[str, Any]:
    return {
        "description": description,
        "headers": _REQUEST_ID | (_RETRY_AFTER if status in {429, 503} else {}),
        "content": {"application/json": {"schema": schema}},
    }


def _reference(model: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": _REFERENCE.format(model=model.__name__)}
