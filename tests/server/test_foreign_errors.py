"""Every error of a lower layer that a route can meet is an answer in OpenAI's shape."""

from __future__ import annotations

import builtins
import concurrent.futures
import errno
import http.client
import json
import multiprocessing
import queue
import socket
import struct
import subprocess
import zlib
from typing import TYPE_CHECKING, Any, get_args

import msgspec
import pydantic
import pydantic_core
import pytest
import werkzeug.exceptions

from mlx_pharos.engine.client import EngineState
from mlx_pharos.engine.generation import Generation, failure, rejection
from mlx_pharos.engine.protocol import OUT_OF_MEMORY, Accepted, Failed, Rejected, RejectionCode
from mlx_pharos.resilience import errors
from mlx_pharos.resilience.admission import Admission
from mlx_pharos.server.app import create_app, start_telemetry
from mlx_pharos.server.foreign_errors import told_error
from mlx_pharos.server.options import ServerOptions
from mlx_pharos.telemetry.attributes import ERROR_TYPE
from support.client import CHAT, chat_body, events

if TYPE_CHECKING:
    from collections.abc import Iterator

_PLANT = "Zq9planted"
_LAYERS = [
    builtins,
    concurrent.futures,
    errors,
    http.client,
    json,
    msgspec,
    multiprocessing,
    pydantic_core,
    queue,
    socket,
    struct,
    subprocess,
    werkzeug.exceptions,
    zlib,
]


def _kinds() -> list[type[Exception]]:
    """All exceptions that the layers have, our own too; warnings are no errors.

    Without werkzeug's two abstract ones, which have no status: Flask takes such
    for a finished response, and only their children are raised.
    """
    found = {
        value
        for layer in _LAYERS
        for value in vars(layer).values()
        if isinstance(value, type)
        and issubclass(value, Exception)
        and not issubclass(value, Warning)
        and (issubclass(value, errors.PharosError) or getattr(value, "code", 0) is not None)
    }
    return sorted(found, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}")


class _Model(pydantic.BaseModel):
    field: int


def _validation_error() -> Exception:
    try:
        _Model.model_validate({"field": _PLANT})
    except pydantic.ValidationError as error:
        return error
    raise AssertionError


def _made(kind: type[Exception]) -> Exception:
    """One with a secret in it, however it wants to be made."""
    if kind is pydantic_core.ValidationError:
        return _validation_error()
    group = (_PLANT, [ValueError(_PLANT)])
    for arguments in ((_PLANT,), group, (_PLANT, _PLANT), ("missing",), ()):
        try:
            return kind(*arguments)
        except (TypeError, KeyError):
            continue
    return kind.__new__(kind)


class _Breaking(Generation):
    """Is accepted, and then brings an error."""

    def __init__(self, error: Exception) -> None:
        super().__init__(1, n=1, cancel=lambda _: None, pace=float)
        self._error = error
        self._accepted = False

    def receive(self, timeout: float) -> list[Any]:  # noqa: ARG002 - as of any other
        """Raise, the second time."""
        if not self._accepted:
            self._accepted = True
            return [Accepted(id=1, prompt_tokens=3, at=1.0)]
        self._unfinished = 0
        raise self._error


class _Raising:
    """An engine whose border lets an error through: before anything began, or in the middle."""

    state = EngineState.READY
    loaded = None
    retry_after = 1.0
    in_flight = 0
    reserve = Admission(max_batch=8, max_queue=0).reserve

    def __init__(self) -> None:
        self.error: Exception = ValueError()
        self.late = False

    def submit_all(self, *_: object, **__: object) -> list[Generation]:
        """Raise now, or let the generation do it."""
        if self.late:
            return [_Breaking(self.error)]
        raise self.error


@pytest.fixture
def ask() -> Iterator[Any]:
    """Posts a chat that meets an error, and returns the answer."""
    engine: Any = _Raising()
    options = ServerOptions(("tiny",))
    with start_telemetry(options) as telemetry:
        client = create_app(options, engine, telemetry).test_client()

        def post(error: Exception, *, late: bool = False, stream: bool = False) -> Any:
            engine.error, engine.late = error, late
            return client.post(CHAT, json=chat_body(stream=stream))

        yield post


def test_no_error_of_a_lower_layer_gets_through_unmapped(ask: Any) -> None:
    """Whatever class a route meets, the client gets a status, a known code, a message of ours."""
    kinds = _kinds()
    assert len(kinds) > 100
    for kind in kinds:
        if issubclass(kind, errors.PharosError) and kind.is_told:
            continue  # those are ours to word
        answer = ask(_made(kind))
        told = answer.get_json()["error"]
        assert {"message", "type", "param", "code"} == set(told), kind
        assert 400 <= answer.status_code < 600, kind
        assert told["code"] in ERROR_TYPE.values, kind
        assert _PLANT.encode() not in answer.data, kind
        assert _PLANT not in str(answer.headers), kind


@pytest.mark.parametrize("stream", [False, True], ids=["body", "stream"])
def test_no_error_gets_through_in_the_middle_of_an_answer(ask: Any, stream: bool) -> None:
    """Raised while the answer is made it is a body of ours or, once the stream has begun, an event
    before ``[DONE]``; a stream never just breaks off.
    """
    for kind in _kinds():
        if issubclass(kind, errors.PharosError) and kind.is_told:
            continue  # those are ours to word
        answer = ask(_made(kind), late=True, stream=stream)
        told = list(events(answer.data))[-1] if stream else answer.get_json()
        assert {"message", "type", "param", "code"} == set(told["error"]), kind
        assert (200 if stream else 400) <= answer.status_code < 600, kind
        assert told["error"]["code"] in ERROR_TYPE.values, kind
        assert _PLANT.encode() not in answer.data, kind


_REJECTED = {
    "context_length_exceeded": (400, "context_length_exceeded"),
    "no_chat_template": (400, "invalid_value"),
    "bad_template": (400, "invalid_value"),
    "empty_prompt": (400, "invalid_value"),
    "bad_token": (400, "invalid_value"),
    "bad_logit_bias": (400, "invalid_value"),
    "too_large": (400, "request_too_large"),
    "memory": (503, "memory"),
}


@pytest.mark.parametrize("code", get_args(RejectionCode))
def test_whatever_the_engine_has_against_a_request_is_an_error_of_ours(ask: Any, code: Any) -> None:
    """Each code that the protocol knows has a status, a code and advice for the client."""
    rejected = Rejected(1, code, prompt_tokens=5, context_length=4, largest_tokens=3)
    answer = ask(rejection(rejected))
    assert _REJECTED[code] == (answer.status_code, answer.get_json()["error"]["code"])
    assert (answer.status_code == 503) == ("Retry-After" in answer.headers)


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [
        (OUT_OF_MEMORY, 503, "out_of_memory"),
        ("RuntimeError", 500, "engine_failure"),
        (_PLANT, 500, "engine_failure"),
        ("", 500, "engine_failure"),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["body", "stream"])
def test_a_failure_in_the_engine_is_an_error_of_ours(
    ask: Any, reason: str, status: int, code: str, stream: bool
) -> None:
    """Its reason is for the log: memory has an error of its own, whatever else it says has one."""
    answer = ask(failure(Failed(1, reason)), late=True, stream=stream)
    told = list(events(answer.data))[-1] if stream else answer.get_json()
    assert (200 if stream else status, code) == (answer.status_code, told["error"]["code"])
    assert _PLANT.encode() not in answer.data


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (MemoryError(_PLANT), 503, "out_of_memory"),
        (OSError(errno.EMFILE, _PLANT), 503, "engine_unavailable"),
        (OSError(errno.ENOENT, "x", _PLANT), 500, "internal_error"),
        (RecursionError(_PLANT), 500, "internal_error"),
        (RuntimeError(f"[malloc] {_PLANT}"), 500, "internal_error"),
        (queue.Empty(), 500, "internal_error"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, _PLANT), 500, "internal_error"),
        (msgspec.DecodeError(_PLANT), 500, "internal_error"),
        (_validation_error(), 500, "internal_error"),
        (werkzeug.exceptions.RequestEntityTooLarge(_PLANT), 413, "body_too_large"),
        (werkzeug.exceptions.UnsupportedMediaType(_PLANT), 415, "unsupported_media_type"),
        (werkzeug.exceptions.BadRequest(_PLANT), 400, "invalid_value"),
        (werkzeug.exceptions.ServiceUnavailable(_PLANT), 500, "internal_error"),
        (errors.ModelError(f"/srv/{_PLANT} is damaged"), 500, "internal_error"),
        (errors.CacheError(_PLANT, operation="load"), 500, "internal_error"),
    ],
)
def test_what_each_kind_is_told_as(ask: Any, error: Exception, status: int, code: str) -> None:
    """What may pass is a 503 with a time, what the client did is a 400, all else is ours."""
    answer = ask(error)
    assert (status, code) == (answer.status_code, answer.get_json()["error"]["code"])
    assert (status == 503) == ("Retry-After" in answer.headers)
    assert _PLANT.encode() not in answer.data


@pytest.mark.parametrize("stream", [False, True], ids=["body", "stream"])
def test_an_error_for_the_operator_is_not_told_in_the_middle(ask: Any, stream: bool) -> None:
    """It may name a path; the client learns that the server failed."""
    answer = ask(errors.ModelError(f"/srv/{_PLANT} is damaged"), late=True, stream=stream)
    told = list(events(answer.data))[-1] if stream else answer.get_json()
    assert "internal_error" == told["error"]["code"]
    assert _PLANT.encode() not in answer.data


def test_an_error_of_ours_is_told_as_it_is() -> None:
    """Its message was composed for the client."""
    error = errors.QueueFullError("Full.")
    assert error is told_error(error)


def test_every_leaf_has_a_status_a_type_a_code_and_advice() -> None:
    """Whoever adds an error says what a client can do about it."""
    leaves = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.PharosError) and kind.code is not None
    ]
    assert len(leaves) > 20
    for leaf in leaves:
        assert 400 <= leaf.status < 600, leaf
        assert leaf.type.endswith("_error"), leaf
        assert leaf.advice.endswith("."), leaf
