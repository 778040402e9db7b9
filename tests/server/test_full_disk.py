"""No file can be written: what waits for a slow reader is kept in memory, and comes whole."""

from __future__ import annotations

import errno
import http.client
import json
import logging
import resource
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from waitress.buffers import OverflowableBuffer, TempfileBasedBuffer

from mlx_pharos.server.output import excess
from support.asks import NO_END
from support.client import CHAT, chat_body, events, wait_until
from support.patient import Patient, patient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.client import RunningServer

_MIB = 1 << 20
_LARGE = chat_body(
    n=4, max_tokens=300, logprobs=True, top_logprobs=20, logit_bias=NO_END, temperature=0
)
"""A legal request whose answer is larger than what waitress keeps in memory by itself."""


@pytest.fixture(scope="module")
def full(tiny_model: Path) -> Iterator[Patient]:
    """A server that can write no byte to any file."""
    with patient(tiny_model, "--max-batch", "4", "--max-queue", "8") as server:
        _let_files_have(server, 0)
        yield server


def _let_files_have(server: Patient, room: int) -> None:
    process = psutil.Process(server.pid)
    process.rlimit(resource.RLIMIT_FSIZE, (room, process.rlimit(resource.RLIMIT_FSIZE)[1]))


def _counted(server: Patient) -> float:
    """Return how many requests were served whole."""
    return sum(
        value
        for sample, value in server.figures().items()
        if sample.startswith("pharos_requests_finished_total")
        and 'finish_reason="length"' in sample
    )


def _ask_and_read_late(server: Patient, **fields: Any) -> tuple[int, bytes]:
    """Read nothing of the answer until all of it was made: it waits in the server."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=15)
    connection.sock = socket.socket()
    connection.sock.settimeout(15)
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sock.connect(("127.0.0.1", server.port))
    served = server.total("pharos_requests_finished_total")
    try:
        body = json.dumps(_LARGE | fields)
        connection.request(
            "POST", CHAT, body, {"Content-Type": "application/json", **server.headers}
        )
        server.wait_for(
            lambda: server.total("pharos_requests_finished_total") == served + 1, "made", 15
        )
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize("stream", [False, True], ids=["body", "stream"])
def test_a_large_answer_comes_whole(full: Patient, stream: bool) -> None:
    """Megabytes of JSON or of events that the client reads late are all there, with one end, and
    the request counts as served and not as one whose client left.
    """
    began = len(full.log)
    served = _counted(full)
    tokens = 1000 if stream else 300
    status, body = _ask_and_read_late(full, stream=stream, max_tokens=tokens)

    assert 200 == status
    assert len(body) > _MIB
    choices = [choice for event in events(body) for choice in event["choices"]] if stream else []
    if stream:
        assert 1 == body.count(b"data: [DONE]")
    else:
        choices = json.loads(body)["choices"]
    scores = [(each["logprobs"] or {}).get("content") or () for each in choices]
    assert 4 * tokens == sum(map(len, scores))
    assert ["length"] * 4 == [each["finish_reason"] for each in choices if each["finish_reason"]]
    assert served + 1 == _counted(full)
    assert "client_left" not in "".join(list(full.log)[began:])


@pytest.mark.parametrize("room", [0, 650_001])
def test_a_large_request_is_refused_in_words(full: Patient, room: int) -> None:
    """A body that finds no room, or only for a part, is a 503 with a time, and no harm is done."""
    _let_files_have(full, room)
    connection = http.client.HTTPConnection("127.0.0.1", full.port, timeout=15)
    try:
        connection.request("POST", CHAT, b" " * 3 * _MIB, full.headers)
        response = connection.getresponse()
        assert (503, "storage_full") == (
            response.status,
            json.loads(response.read())["error"]["code"],
        )
        assert response.headers["Retry-After"]
    finally:
        connection.close()
    assert 200 == full.get("/livez")[0]
    full.wait_idle()
    assert "Exception" not in "".join(full.log)


@pytest.mark.parametrize("step", ["append", "get"], ids=["kept", "sent"])
def test_an_answer_that_cannot_be_kept_or_sent_is_cut(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Where memory ends under an answer its client is not left waiting for the rest."""
    real = getattr(OverflowableBuffer, step)

    def fail(buffer: OverflowableBuffer, what: Any, *more: Any) -> Any:
        if (len(buffer) if step == "get" else len(what)) > 100_000:
            raise MemoryError
        return real(buffer, what, *more)

    monkeypatch.setattr(OverflowableBuffer, step, fail)
    with pytest.raises(http.client.IncompleteRead):
        server.chat(**_LARGE | {"max_tokens": 100})
    monkeypatch.undo()
    assert 200 == server.get("/livez").status
    server.wait_idle()


def test_an_idle_connection_holds_nothing_of_its_last_answer(server: RunningServer) -> None:
    """What was sent is dropped, and not kept until the next request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=15)
    try:
        body = json.dumps(_LARGE | {"max_tokens": 100})
        connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
        assert len(connection.getresponse().read()) > 100_000
        (channel,) = (
            each
            for each in list(server.listener._members.values())
            if getattr(each, "addr", None) == connection.sock.getsockname()
        )
        wait_until(lambda: not channel.total_outbufs_len)
        held = channel.outbufs[-1].getfile()
        assert 0 == held.seek(0, 2)
    finally:
        connection.close()


def test_slow_readers_together_have_a_bound() -> None:
    """Beyond it those with most unread output give way, and no more than has to."""
    sizes = [1, 300, 100, 200]
    channels: list[Any] = [SimpleNamespace(total_outbufs_len=size * _MIB) for size in sizes]

    assert [300 * _MIB] == [each.total_outbufs_len for each in excess(channels)]
    assert [] == excess(channels[2:])


def test_a_body_that_its_file_cannot_keep_is_let_go(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What Python still holds of a file is written when it is closed, and fails there on a full disk."""
    real = TempfileBasedBuffer.close

    def close(buffer: TempfileBasedBuffer) -> None:
        real(buffer)
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(TempfileBasedBuffer, "close", close)
    body = chat_body(messages=[{"role": "user", "content": "a " * 400_000}])
    assert (400, "context_length_exceeded") == (
        (refused := server.post(CHAT, body)).status,
        refused.error["code"],
    )
    wait_until(lambda: server.listener.threads()[0] == 0)
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]
