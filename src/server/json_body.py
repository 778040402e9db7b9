"""Reading a request's JSON strictly: what two readers could understand differently is refused.

Every refusal is a 4xx that says what to do. Python's own reader accepts NaN,
1e999, duplicate keys and lone surrogates, and raises RecursionError on deep
nesting: each of these is found here, before anything else sees the body. So is
what would cost much more memory than it has bytes: millions of empty objects.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, NoReturn

from ..resilience.errors import BodyTooLargeError, InvalidRequestError, MediaTypeError

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = ["parse_json_object", "read_json_object", "shown", "too_large"]

_MAX_DEPTH = 32
"""A chat request needs 5 levels; metadata and schemas of tools some more."""
_MAX_CONTAINERS = 100_000
"""Objects and arrays; 10,000 messages of several parts need fewer. An empty one of three bytes
takes 64 bytes of memory."""
_MAX_STRINGS = 250_000
"""Strings, keys included."""
_MAX_KEYS = 2048
"""In one object; the largest, ``logit_bias``, may have 1024. Each wrong one costs an error."""
_MAX_INTEGER_DIGITS = 20
"""Enough for every 64-bit number, far below where Python refuses to convert."""
_EXACT = 2.0**53
"""Below it a double holds every integer."""
_SHOWN_CHARACTERS = 64
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


def read_json_object(environ: WSGIEnvironment, *, max_bytes: int) -> dict[str, Any]:
    """Return the object that the request's body holds.

    Args:
        environ: The WSGI environment; its input is read once.
        max_bytes: The largest body that is read.

    Raises:
        MediaTypeError: The body is not declared as JSON in UTF-8.
        BodyTooLargeError: The body is larger than ``max_bytes``.
        InvalidRequestError: The body is not one strict JSON object.
    """
    _check_media_type(environ)
    declared = environ.get("CONTENT_LENGTH") or "0"
    if (
        declared.isascii()
        and declared.isdigit()
        and int(declared[:_MAX_INTEGER_DIGITS]) > max_bytes
    ):
        raise too_large(max_bytes)
    body = environ["wsgi.input"].read(max_bytes + 1)
    if len(body) > max_bytes:
        raise too_large(max_bytes)
    return parse_json_object(body)


def too_large(max_bytes: int) -> BodyTooLargeError:
    """Return the error for a body beyond the limit."""
    return BodyTooLargeError(
        f"The request body is larger than the {max_bytes} bytes that this server accepts. "
        "Send less text, or raise the server's body limit."
    )


def parse_json_object(body: bytes) -> dict[str, Any]:
    """Return the object in ``body``; raises :class:`InvalidRequestError` on anything else."""
    _check_size(body)
    value = _parse(_decode(body))
    if not isinstance(value, dict):
        message = 'The request body must be a JSON object, like {"model": ...}.'
        raise InvalidRequestError(message)
    _check_depth(value)
    if _SURROGATE_ESCAPE.search(body):
        _check_surrogates(value)
    return value


def shown(text: str) -> str:
    """Return text of a client so that it can stand in a message: quoted, short, printable."""
    cut = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
    return "'" + "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in cut) + "'"


def _check_media_type(environ: WSGIEnvironment) -> None:
    declared = environ.get("CONTENT_TYPE", "")
    kind, _, parameters = declared.partition(";")
    if kind.strip().lower() != "application/json":
        message = "Send the body with the header 'Content-Type: application/json'."
        raise MediaTypeError(message)
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        charset = value.strip().strip('"').lower()
        if name.strip().lower() == "charset" and charset not in {"utf-8", "utf8"}:
            message = "Only UTF-8 is read. Send 'Content-Type: application/json; charset=utf-8'."
            raise MediaTypeError(message)
    if environ.get("HTTP_CONTENT_ENCODING", "identity").strip().lower() not in {"", "identity"}:
        message = "Compressed bodies are not read. Send the body without Content-Encoding."
        raise MediaTypeError(message)


def _decode(body: bytes) -> str:
    if not body.strip():
        message = "The request body is empty. Send a JSON object."
        raise InvalidRequestError(message)
    if body.startswith(_BYTE_ORDER_MARKS):
        message = "The request body starts with a byte order mark. Send plain UTF-8 without one."
        raise InvalidRequestError(message)
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"The request body is not UTF-8: byte {error.start} cannot be decoded."
        raise InvalidRequestError(message) from None


def _check_size(body: bytes) -> None:
    """Raise where the body holds more values than any request needs, before they are made.

    Numbers are not counted: a prompt of a million token ids is one.
    """
    quotes = body.count(b'"')
    if body.count(b"{") + body.count(b"[") <= _MAX_CONTAINERS and quotes <= 2 * _MAX_STRINGS:
        return
    # Much of that may be inside of strings, in a prompt of code: only what is outside counts.
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if plain.count(b'"') > 2 * _MAX_STRINGS:
        message = f"The request body holds more than {_MAX_STRINGS} strings."
        raise InvalidRequestError(message)
    outside = b"".join(plain.split(b'"')[::2])
    if outside.count(b"{") + outside.count(b"[") > _MAX_CONTAINERS:
        message = f"The request body holds more than {_MAX_CONTAINERS} objects and arrays."
        raise InvalidRequestError(message)


def _parse(text: str) -> Any:  # noqa: ANN401 - JSON is any value
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        message = (
            f"The request body is not valid JSON: {error.msg} "
            f"at line {error.lineno}, column {error.colno}."
        )
        raise InvalidRequestError(message) from None
    except RecursionError:
        raise _too_deep() from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > _MAX_KEYS:
        message = f"An object in the request body has more than {_MAX_KEYS} keys."
        raise InvalidRequestError(message)
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                message = f"The key {shown(key)} appears twice in one object. Send it once."
                raise InvalidRequestError(message)
            seen.add(key)
    return members


def _integer(digits: str) -> int:
    if len(digits) > _MAX_INTEGER_DIGITS:
        message = "The request body holds an integer that does not fit in 64 bits."
        raise InvalidRequestError(message)
    return int(digits)


def _number(digits: str) -> float | int:
    value = float(digits)
    if not math.isfinite(value):
        message = "The request body holds a number that is too large for a double."
        raise InvalidRequestError(message)
    # JSON knows one kind of number: 2.0 is an integer wherever 2 is.
    return int(value) if value.is_integer() and abs(value) < _EXACT else value


def _constant(name: str) -> NoReturn:
    message = f"{name} is not JSON. Send a finite number, or leave the field out."
    raise InvalidRequestError(message)


def _too_deep() -> InvalidRequestError:
    return InvalidRequestError(
        f"The request body is nested too deeply. At most {_MAX_DEPTH} levels are read."
    )


def _check_depth(value: dict[str, Any]) -> None:
    """Raise where containers nest too deeply. Iterative: the nesting may be hostile."""
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        below: list[Any] = []
        for container in level:
            items = container.values() if isinstance(container, dict) else container
            below.extend(item for item in items if isinstance(item, (dict, list)))
        if not below:
            return
        level = below
    raise _too_deep()


def _check_surrogates(value: Any) -> None:  # noqa: ANN401 - JSON is any value
    """Raise where a string holds half of a surrogate pair: it has no UTF-8 form.

    Runs after :func:`_check_depth`, so the recursion is bounded.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            message = (
                "A string in the request body holds half of a surrogate pair (\\ud800 to \\udfff). "
                "Send both halves, or the character itself in UTF-8."
            )
            raise InvalidRequestError(message) from None
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_surrogates(key)
            _check_surrogates(item)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, (str, dict, list)):  # a call for each number would take long
                _check_surrogates(item)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_int=_integer,
    parse_float=_number,
    parse_constant=_constant,
)
