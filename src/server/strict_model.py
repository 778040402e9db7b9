"""The base of all request schemas, and how their errors become OpenAI's.

A field that OpenAI has and this server has not is declared with the values
that change nothing (``null``, an empty list): so it is part of the OpenAPI
document, clients that send their defaults are served, and any other value is
a 400 that names the field.

Every list in a request is bounded and ends at its first wrong item
(``fail_fast``): an error for each of a million items would take gigabytes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, LiteralString, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from ..resilience.errors import InvalidRequestError, UnsupportedFieldError
from .json_body import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic_core import ErrorDetails

__all__ = ["EmptyList", "NotOffered", "StrictModel", "dotted", "field_error", "validate"]


class StrictModel(BaseModel):
    """Types as JSON has them (``true`` is no number), no unknown fields, no assignment.

    Errors never hold the input: it may be long, hostile or private.
    """

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )


EmptyList = Annotated[list[None], Field(max_length=0, fail_fast=True)]
NotOffered = Annotated[None, Field(description="Not offered: leave it out, or send null.")]

_NOT_OFFERED = frozenset(
    {
        "audio",
        "chat_template_kwargs",
        "function_call",
        "functions",
        "guided_json",
        "modalities",
        "prediction",
        "reasoning_effort",
        "response_format",
        "service_tier",
        "store",
        "suffix",
        "tool_calls",
        "tool_choice",
        "tools",
        "verbosity",
        "web_search_options",
    }
)
"""Fields that exist in OpenAI's API and are offered in part or not at all."""

_ERRORS_LOOKED_AT = 100
"""A request has fewer fields; only a body of wrong keys makes more errors."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

_Model = TypeVar("_Model", bound=StrictModel)
_Location = tuple[int | str, ...]


def validate(model: type[_Model], body: dict[str, Any]) -> _Model:
    """Return ``body`` as ``model``.

    Raises:
        UnsupportedFieldError: A field is unknown, or not offered.
        InvalidRequestError: A value has a wrong type, shape or range.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
    raise _first_problem(body, found)


def field_error(param: str, message: LiteralString) -> PydanticCustomError:
    """Return an error for a model's validator to raise: what is wrong with its field ``param``."""
    return PydanticCustomError("field", message, {"param": param})


def dotted(location: Sequence[int | str]) -> str:
    """Return a field's place in OpenAI's form: ``messages[0].content``."""
    text = ""
    for step in location:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            name = step if _PLAIN_NAME.fullmatch(step) else shown(step)
            text += f".{name}" if text else name
    return text


def _first_problem(body: dict[str, Any], found: list[ErrorDetails]) -> InvalidRequestError:
    """Return the error that helps most: a field that is not offered before a wrong value."""
    problems = [_problem(body, details) for details in found[:_ERRORS_LOOKED_AT]]
    for problem in problems:
        if isinstance(problem, UnsupportedFieldError):
            return problem
    return problems[0]


def _problem(body: dict[str, Any], details: ErrorDetails) -> InvalidRequestError:
    location = _real_location(body, details)
    for depth, step in enumerate(location):
        if step in _NOT_OFFERED:
            return _not_offered(dotted(location[: depth + 1]))
    param = dotted(location)
    kind = details["type"]
    if kind == "extra_forbidden":
        return _unknown(param)
    if kind == "literal_error" and location[-1] == "type" and "content" in location:
        message = f"Only text is read. '{param}' must be 'text': leave out images, audio and files."
        return UnsupportedFieldError(message, param=param)
    if kind in {"union_tag_invalid", "union_tag_not_found"}:
        # The one union with a tag in the request is that of the messages, by role.
        param = f"{param}.role"
        roles = "'system', 'developer', 'user', 'assistant' and 'tool'"
        return InvalidRequestError(f"'{param}' must be one of {roles}.", param=param)
    return InvalidRequestError(f"'{param}': {_reason(details)}.", param=param)


def _reason(details: ErrorDetails) -> str:
    """Return what is wrong with a value. pydantic's words never quote the value itself here."""
    match details["type"]:
        case "missing":
            return "This field is required"
        case "model_type" | "model_attributes_type":
            return "Input should be an object"
        case _:
            return details["msg"].replace(" after validation", "")


def _unknown(param: str) -> UnsupportedFieldError:
    message = (
        f"The field '{param}' is not known to this server. Leave it out: "
        "no field is ignored silently."
    )
    return UnsupportedFieldError(message, param=param)


def _not_offered(param: str) -> UnsupportedFieldError:
    message = f"'{param}' with this value is not supported by this server. Leave it out."
    return UnsupportedFieldError(message, param=param)


def _real_location(body: dict[str, Any], details: ErrorDetails) -> _Location:
    """Return the location without the names that pydantic adds for members of a union.

    A step that leads nowhere in the body is such a name, but for the last step
    to a field that is missing.
    """
    location = details["loc"]
    place: Any = body
    real: list[int | str] = []
    for step in location:
        known = (isinstance(place, dict) and isinstance(step, str) and step in place) or (
            isinstance(place, list) and isinstance(step, int) and step < len(place)
        )
        if known:
            place = place[step]
            real.append(step)
    if details["type"] == "missing":
        real.append(location[-1])
    elif details["type"] == "field":
        real.append(details["ctx"]["param"])
    return tuple(real)
