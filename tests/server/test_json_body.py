"""Reading bodies: every dubious one is refused, with words that help."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_pharos.resilience.errors import (
    BodyTooLargeError,
    InvalidRequestError,
    MediaTypeError,
)
from mlx_pharos.server.json_body import parse_json_object, read_json_object

REFUSED = {
    b"": "empty",
    b" \r\n\t": "empty",
    b"{": "not valid JSON",
    b"[]": "JSON object",
    b"1": "JSON object",
    b"null": "JSON object",
    b'{"a": 1} x': "not valid JSON",
    b"\xef\xbb\xbf{}": "byte order mark",
    '{"a": "b"}'.encode("utf-16"): "byte order mark",
    '{"a": "b"}'.encode("utf-16-le"): "not valid JSON",
    '{"a": "é"}'.encode("latin-1"): "not UTF-8",
    b'{"a": NaN}': "NaN",
    b'{"a": [Infinity]}': "Infinity",
    b'{"a": -Infinity}': "-Infinity",
    b'{"a": 1e999}': "too large",
    b'{"a": -1e999}': "too large",
    b'{"a": ' + b"9" * 5000 + b"}": "64 bits",
    b'{"a": ' + b"9" * 21 + b"}": "64 bits",
    b'{"a": "\\ud800"}': "surrogate",
    b'{"a": [{"b": "x\\udfffy"}]}': "surrogate",
    b'{"\\ud83d": 1}': "surrogate",
    b'{"a": 1, "b": 2, "a": 3}': "'a' appears twice",
    b'{"x": {"k": 1, "k": 1}}': "'k' appears twice",
    b'{"a":' * 40 + b"1" + b"}" * 40: "nested too deeply",
    b"[" * 100_000: "nested too deeply",
    b'{"a":' * 100_000: "nested too deeply",
    b'{"a": "\x01"}': "not valid JSON",
    b"{a: 1}": "not valid JSON",
    b"{'a': 1}": "not valid JSON",
    b'{"a": 01}': "not valid JSON",
}


def environ(body: bytes, **headers: str) -> dict[str, Any]:
    """Return what waitress hands the application."""
    return {
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
    } | headers


@pytest.mark.parametrize("body", REFUSED, ids=lambda body: repr(body[:24]))
def test_dubious_json_is_refused_with_a_reason(body: bytes) -> None:
    """What is not one strict JSON object is a 400 that says what is wrong."""
    with pytest.raises(InvalidRequestError, match=REFUSED[body]):
        parse_json_object(body)


def test_a_refusal_never_quotes_long_or_unprintable_keys() -> None:
    """A client's text stands in a message short and printable."""
    key = json.dumps("\x00" + "k" * 500)
    with pytest.raises(InvalidRequestError) as caught:
        parse_json_object(f"{{{key}: 1, {key}: 2}}".encode())

    assert len(caught.value.message) < 200
    assert caught.value.message.isprintable()


def test_both_halves_of_a_surrogate_pair_are_a_character() -> None:
    """An escaped emoji is read."""
    assert {"a": "😀"} == parse_json_object(b'{"a": "\\ud83d\\ude00"}')


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(2**63), 2**63)
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(st.characters(exclude_categories=["Cs"])),
            lambda inner: st.lists(inner) | st.dictionaries(st.text("abc"), inner),
            max_leaves=8,
        ),
    )
)
def test_every_strict_object_is_read_as_it_was_written(value: dict[str, Any]) -> None:
    """Strictness costs no valid body anything, escaped or not."""
    for escaped in (True, False):
        assert value == parse_json_object(json.dumps(value, ensure_ascii=escaped).encode())


@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    """No body makes the reader fail in another way than by refusing it."""
    with contextlib.suppress(InvalidRequestError):
        parse_json_object(body)


@pytest.mark.parametrize(
    "declared",
    ["", "text/plain", "application/json; charset=utf-16", "application/x-www-form-urlencoded"],
)
def test_other_media_types_are_refused(declared: str) -> None:
    """A body that is not declared as JSON in UTF-8 is a 415."""
    with pytest.raises(MediaTypeError):
        read_json_object(environ(b"{}", CONTENT_TYPE=declared), max_bytes=100)


def test_compressed_bodies_are_refused() -> None:
    """Content-Encoding is a 415, not a riddle about bytes."""
    with pytest.raises(MediaTypeError):
        read_json_object(environ(b"{}", HTTP_CONTENT_ENCODING="gzip"), max_bytes=100)


@pytest.mark.parametrize(
    "declared",
    ["application/json", "APPLICATION/JSON; charset=UTF-8", 'application/json;charset="utf-8"'],
)
def test_json_in_utf_8_is_read_however_it_is_spelled(declared: str) -> None:
    """Media types have no case, and parameters may be quoted."""
    assert {} == read_json_object(environ(b"{}", CONTENT_TYPE=declared), max_bytes=100)


def test_the_limit_holds_with_and_without_a_declared_length() -> None:
    """A body of the limit is read, one byte more is a 413."""
    body = b'{"a": "' + b"x" * 100 + b'"}'

    assert read_json_object(environ(body), max_bytes=len(body))
    with pytest.raises(BodyTooLargeError, match=str(len(body) - 1)):
        read_json_object(environ(body), max_bytes=len(body) - 1)
    with pytest.raises(BodyTooLargeError):
        read_json_object(environ(body, CONTENT_LENGTH=""), max_bytes=len(body) - 1)


def test_a_whole_number_is_an_integer_however_it_is_written() -> None:
    """JSON has one kind of number, and some clients write 2.0 for 2."""
    value = parse_json_object(b'{"a": 2.0, "b": 1e3, "c": 0.5, "d": 1e300}')

    assert [int, int, float, float] == [type(number) for number in value.values()]
