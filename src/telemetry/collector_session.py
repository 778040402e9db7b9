"""How the exporters of OTLP over HTTP speak with a collector that need not be a good one.

Left alone they take a redirect for a success, never look at what a collector
says that it rejected, read an answer of any size, decompress it, and wait for
each piece of it as long as for the whole. Here an attempt has one deadline and
an answer has an end, while connections are kept as before:

* an answer is read up to :data:`LONGEST_ANSWER`, and never decompressed;
* reading it, headers included, ends at the deadline of the attempt;
* a redirect fails, and says what to do about it;
* items that the collector rejected are handed on to be counted.

What is not bounded as a whole: finding the address of a name, and each of
connecting (per address), the TLS handshake and a piece that TLS sends may take
the time of an attempt. ``requests`` comes with the exporters, which take a
session of it; a plugin's own session (``…_CREDENTIAL_PROVIDER``) goes without this.
"""

from __future__ import annotations

import http.client
import io
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from requests.adapters import HTTPAdapter
from urllib3 import Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection

from .printable import printable

if TYPE_CHECKING:
    import socket

    from requests import PreparedRequest, Response
    from urllib3 import HTTPConnectionPool

    from .rejections import Rejections
    from .signals import Signal

__all__ = ["LONGEST_ANSWER", "RedirectedError", "collector_session"]

LONGEST_ANSWER = 64 * 1024
"""Bytes of an answer that are read, its headers included. An ordinary one has some hundred."""
_LONGEST_SECONDS = 10.0
"""For an answer, where the attempt names no time; the exporters always do."""
_LONGEST_WORDS = 160
"""Characters of what a collector says that are told in the log."""
_LONGEST_HOST = 80
_OK = 200
_ANSWERS: dict[Signal, tuple[Any, str]] = {
    "traces": (ExportTraceServiceResponse, "rejected_spans"),
    "metrics": (ExportMetricsServiceResponse, "rejected_data_points"),
    "logs": (ExportLogsServiceResponse, "rejected_log_records"),
}


class RedirectedError(requests.RequestException):
    """The collector is elsewhere. Nothing was delivered, and trying again would not help."""


class _TooLongError(Exception):
    """More of an answer came than is read. None of the kinds that ``urllib3`` takes for its own."""


def collector_session(signal: Signal, rejections: Rejections) -> requests.Session:
    """Return a session for an exporter.

    Args:
        signal: What the exporter sends.
        rejections: Told in the thread that exports, before the export returns.
    """
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"
    adapter = _CollectorAdapter(signal, rejections)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


class _CollectorAdapter(HTTPAdapter):
    """Sends one request and reads its answer, as far as there is room and time."""

    def __init__(self, signal: Signal, rejections: Rejections) -> None:
        super().__init__()
        self._signal: Signal = signal
        self._rejections = rejections

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> HTTPConnectionPool:  # noqa: ANN401 - handed on
        """Return the pool of a collector, whose connections will read with a deadline."""
        pool = super().get_connection_with_tls_context(*args, **kwargs)
        if pool.ConnectionCls is HTTPConnection:
            pool.ConnectionCls = _Connection
        elif pool.ConnectionCls is HTTPSConnection:
            pool.ConnectionCls = _SecureConnection
        return pool

    def send(
        self,
        request: PreparedRequest,
        stream: bool = False,  # noqa: ARG002, FBT001, FBT002 - the signature of requests
        timeout: Any = None,  # noqa: ANN401 - the type has no public name
        *args: Any,  # noqa: ANN401 - handed on
        **kwargs: Any,  # noqa: ANN401 - handed on
    ) -> Response:
        """Send it, and return an answer that has been read.

        Raises:
            RedirectedError: For any answer of 300 to 399.
            requests.RequestException: For one that does not come.
            urllib3.exceptions.HTTPError: For one that ends early, or not before the deadline.
        """
        whole: Any = Timeout(total=timeout)
        answer = super().send(request, True, whole, *args, **kwargs)
        if 300 <= answer.status_code < 400:  # noqa: PLR2004 - as HTTP says
            answer.close()
            raise RedirectedError(_redirect_text(answer))
        body = _read(answer)
        # All is read; nor are cookies kept, of which each answer could bring new ones.
        answer.raw = io.BytesIO(body)
        if answer.status_code == _OK and _may_be_protobuf(answer):
            self._note_rejections(body)
        return answer

    def _note_rejections(self, body: bytes) -> None:
        kind, field = _ANSWERS[self._signal]
        try:
            partial = kind.FromString(body).partial_success
        except DecodeError:  # a 200 is a success, whatever follows
            return
        count = getattr(partial, field)
        if count > 0:
            self._rejections.note(count, printable(partial.error_message, _LONGEST_WORDS))


def _read(answer: Response) -> bytes:
    """Return the body as it was sent, or nothing of one that is too long."""
    pieces = []
    try:
        while piece := answer.raw.read(LONGEST_ANSWER, decode_content=False):
            pieces.append(piece)
    except _TooLongError:
        answer.close()
        return b""
    return b"".join(pieces)


def _may_be_protobuf(answer: Response) -> bool:
    """Whether the body is what was asked for; some servers name no type."""
    kind = answer.headers.get("Content-Type", "application/x-protobuf")
    encoding = answer.headers.get("Content-Encoding", "identity")
    return "protobuf" in kind.lower() and encoding.strip().lower() == "identity"


def _redirect_text(answer: Response) -> str:
    """Say where the collector is, without the path and the query, which may hold a key."""
    where = ""
    try:
        parts = urlsplit(answer.headers.get("Location", ""))
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if host.replace("-", "").replace(".", "").isalnum() and len(host) <= _LONGEST_HOST:
        where = f" and points to {'https' if parts.scheme == 'https' else 'http'}://{host}"
        where += f":{port}" if port else ""
    return (
        f"the collector answered {answer.status_code}{where}, and redirects are not followed: "
        "put the final address in --otlp-endpoint"
    )


class _Limited(io.RawIOBase):
    """The socket's bytes, up to a number and a time."""

    def __init__(self, source: io.RawIOBase, sock: socket.socket) -> None:
        """Begin; the deadline is the socket's timeout from now on."""
        super().__init__()
        self._source = source
        self._sock = sock
        self._deadline = time.monotonic() + (sock.gettimeout() or _LONGEST_SECONDS)
        self._room = LONGEST_ANSWER

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:  # noqa: ANN401 - any writable buffer
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer did not end before the deadline")
        self._sock.settimeout(left)
        count: int | None = self._source.readinto(buffer)
        self._room -= count or 0
        if self._room < 0:
            raise _TooLongError(f"the collector's answer is longer than {LONGEST_ANSWER} bytes")
        return count

    def close(self) -> None:
        self._source.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    """Reads all that comes, the status line first, through :class:`_Limited`."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - handed on
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Limited(self.fp.detach(), sock))


class _Connection(HTTPConnection):
    response_class = _Answer


class _SecureConnection(HTTPSConnection):
    response_class = _Answer
