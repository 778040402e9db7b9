"""The OpenAPI document is generated, complete and true."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from mlx_pharos.server.openapi import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlx_pharos.server.openapi import Operation
    from support.client import RunningServer

LIMITS = ("max_tokens", "max_completion_tokens")


@pytest.fixture(scope="module")
def schema(server: RunningServer) -> Any:
    """What schemathesis reads from the running server."""
    return schemathesis.openapi.from_url(f"{server.listener.url}/openapi.json")


def test_every_route_is_in_the_document_and_the_other_way_round(server: RunningServer) -> None:
    """The table of operations and the application's routes are the same."""
    app: Any = server.listener._servers[0].application
    while not hasattr(app, "url_map"):
        app = app.__closure__[0].cell_contents
    routes = {
        (method.lower(), rule.rule.replace("<path:", "{").replace(">", "}"))
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }

    assert {(operation.method, operation.path) for operation in OPERATIONS} == routes


def test_requests_are_closed_and_every_field_is_described(server: RunningServer) -> None:
    """No schema of a request lets unknown fields pass; descriptions reach the document."""
    schemas = server.get("/openapi.json").json["components"]["schemas"]

    for name in ("ChatRequest", "CompletionRequest", "StreamOptions", "UserMessage", "TextPart"):
        assert schemas[name]["additionalProperties"] is False
    assert ["tiny", "org/other"] == schemas["ChatRequest"]["properties"]["model"]["enum"]
    assert schemas["ChatRequest"]["properties"]["seed"]["description"]
    assert "Not offered" in str(schemas["ChatRequest"]["properties"]["audio"])


def bounded(body: dict[str, Any]) -> dict[str, Any]:
    """Keep answers small: the schema also allows some that take minutes."""
    for field in ("n", "best_of"):
        if body.get(field):
            body[field] = min(body[field], 2)
    body["max_tokens"] = 3
    return body


def consistent(body: dict[str, Any]) -> dict[str, Any]:
    """Make true what no schema says: fields that go together, and the prompt's vocabulary."""
    if not body.get("stream"):
        body.pop("stream_options", None)
    if not body.get("logprobs") or "prompt" not in body:
        body.pop("top_logprobs", None)
    if body.get("echo"):
        body.pop("logprobs", None)
    if body.get("best_of"):
        body["best_of"] = body.get("n") or 1
    body.pop("max_completion_tokens", None)
    if "prompt" in body:
        body["prompt"] = known_tokens(body["prompt"])
    return body


def known_tokens(prompt: Any) -> Any:
    """Replace token ids by some that the tiny model has, and empty prompts by a letter."""
    if isinstance(prompt, list):
        return [known_tokens(part) for part in prompt]
    return prompt % 256 if isinstance(prompt, (int, float)) else prompt or "x"


def body_check(schema: Any, operation: Operation) -> Callable[[Any], bool]:
    """Return what says whether a body is valid by the document's own words."""
    if not operation.request:
        return lambda _: True
    place = {"$ref": f"#/components/schemas/{operation.request.__name__}"}
    validator = jsonschema_rs.validator_for(place | {"components": schema.raw_schema["components"]})
    return lambda body: isinstance(body, dict) and validator.is_valid(body)


CASES = [(operation, GenerationMode.POSITIVE) for operation in OPERATIONS] + [
    (operation, GenerationMode.NEGATIVE) for operation in OPERATIONS if operation.request
]


@pytest.mark.parametrize(
    ("operation", "mode"), CASES, ids=[f"{case[0].name}-{case[1].value}" for case in CASES]
)
def test_the_server_does_what_the_document_says(
    schema: Any, server: RunningServer, operation: Operation, mode: GenerationMode
) -> None:
    """Generated requests, valid and not: no 5xx, documented statuses, headers and bodies only."""
    described = schema[operation.path][operation.method.upper()]
    is_valid = body_check(schema, operation)

    @settings(
        max_examples=40,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=described.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        if operation.request and mode is GenerationMode.POSITIVE:
            case.body = consistent(bounded(case.body))
            case.headers.pop("X-Request-Timeout", None)  # some are shorter than any answer takes
        elif operation.request and not is_valid(case.body):
            # Its header may be invalid too, and must not be what a wrong body is refused for.
            case.headers["X-Request-Timeout"] = "1"
        response = case.call(base_url=server.listener.url, timeout=10)
        excluded = []
        if response.status_code == 400 and response.json()["error"]["param"] == "logit_bias":
            # The schema cannot say which token ids the model has.
            excluded.append(positive_data_acceptance)
        case.validate_response(response, excluded_checks=excluded)

    check()
    server.wait_idle()
