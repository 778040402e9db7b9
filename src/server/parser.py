"""waitress' parser of requests, made strict: what two parsers could read differently is refused.

What can be refused at the headers is refused there, so that a large body that
nobody will read is never waited for. Runs in the I/O thread: whatever is looked
for in a request has to be found in a time that grows with its length and no faster.
"""

from __future__ import annotations

import contextlib
import re
import time
from io import BytesIO
from typing import TYPE_CHECKING

from waitress.parser import HTTPRequestParser, ParsingError
from waitress.receiver import ChunkedReceiver
from waitress.utilities import BadRequest, Error, RequestHeaderFieldsTooLarge

from ..resilience.errors import AuthenticationError, BodyTooLargeError, StorageFullError
from .auth import check_api_key
from .gate import GENERATION_PATHS
from .json_body import too_large
from .operation import METRICS_PATHS
from .refusal import Refusal, refusal_of

if TYPE_CHECKING:
    from typing import Any

    from waitress.adjustments import Adjustments

    from .caller import Caller
    from .options import ServerOptions

__all__ = ["Chunks", "Parser"]

_CODINGS = re.compile(rb"\r\ntransfer-encoding[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE)
_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
"""A line feed without its carriage return, or the other way round."""
_FOLD = re.compile(rb"\r\n[ \t]")
_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+ [^ ]+(?: HTTP/1\.[01])?")
"""A request's first line. waitress looks for an address in it, and where the line's end is wrong it
tries all of the places where one could end: 16 KB take most of a minute."""
_PADDING = re.compile(rb"\n([^:\n]*:)[ \t]{2,}")
"""What stands before a header's value: waitress splits it in all ways; 64 KB take half a minute."""
_HOSTS = re.compile(rb"\r\nhost[ \t]*:", re.IGNORECASE)
_MARKS = re.compile(rb"\r\n(x-request-id|traceparent)[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE)
"""By what clients know their requests."""
_SIZE_LINE = 1024
"""Bytes of a chunk's size with its extensions: nobody sends any."""
_UNREAD = "_OTHER"
"""The method where none could be read; WSGI wants one."""
_TRAILER = 8192
"""Bytes of headers behind a chunked body, which nobody reads."""
_MOST_HEADERS = 200
"""waitress copies what it has of a header for each that has the same name."""
_MOST_LINES = _MOST_HEADERS + 2
"""With the request line and the empty one."""
_SMALL_BODY = 65536
"""Bytes of a body that no route reads, which clients may send all the same."""
_FRAMING = 65536
"""Bytes around the chunks of a body, beyond as many as are in them. Chunks of one byte each take a
hundred times as long to read as large ones."""
_STORAGE_SECONDS = 10.0
"""Who has to make room needs a moment."""


class Chunks(ChunkedReceiver):
    """Reads a chunked body strictly.

    waitress takes a size with a line feed behind it for a size, and waits for
    more where a line feed alone ends it. Behind the last chunk it takes any
    bytes, and without a bound.
    """

    def received(self, s: bytes) -> int:
        """Take bytes of the body and return how many."""
        taken = 0
        while taken < len(s) and not self.completed and not self.error:
            piece = s[taken : self._border(s, taken)]
            if self._in_size and not _may_be_size(self.control_line + piece):
                self.error = BadRequest("The size of a chunk must be short and end with CR LF")
                return len(s)
            if self.all_chunks_received and not _may_be_trailer(self.trailer + piece):
                self.error = BadRequest("What follows a body must be short, in lines of CR LF")
                return len(s)
            taken += super().received(piece)
        return taken

    @property
    def _in_size(self) -> bool:
        return not (self.chunk_remainder or self.validate_chunk_end or self.all_chunks_received)

    def _border(self, s: bytes, begin: int) -> int:
        """Return where the next part of the body ends, so that each size is seen in its line."""
        if self.chunk_remainder:
            return begin + int(self.chunk_remainder)
        if self.validate_chunk_end:
            return begin + len(b"\r\n") - len(self.chunk_end)
        return (s.find(b"\n", begin) + 1 if self._in_size else 0) or len(s)


def _may_be_size(line: bytes) -> bool:
    """Return whether a line, or the beginning of one, can be a chunk's size."""
    ended = line.endswith(b"\n")
    return len(line) <= _SIZE_LINE and (not ended or line.removesuffix(b"\r\n") not in {b"", line})


def _may_be_trailer(data: bytes) -> bool:
    """Return whether bytes behind the last chunk, up to their empty line, can be its trailer."""
    if data.startswith(b"\r\n"):
        return True
    trailer, end, _ = data.partition(b"\r\n\r\n")
    return len(trailer) <= _TRAILER and not _BARE.search(trailer + end)


class Parser(HTTPRequestParser):
    """Reads one request. ``adj.options`` holds the server's options."""

    # waitress leaves out what it could not read.
    command: str = _UNREAD  # type: ignore[assignment] # where it was read it is text, too
    caller: Caller | None = None
    """Whose it is, if that was looked at when it had been read."""
    read_at: float | None = None
    """When all of it was there, if the I/O loop was free to look at it then."""
    path = "/"
    request_uri = query = ""
    url_scheme = "http"
    is_last = False
    """Whether the connection ends with it, whatever it says itself."""

    def __init__(self, adj: Adjustments) -> None:
        super().__init__(adj)
        self._options: ServerOptions = vars(adj)["options"]
        self.began_at = time.monotonic()
        """When the first byte came."""

    def received(self, data: bytes) -> int:
        """Take bytes of the client and return how many; refuse at the headers what can be.

        Empty lines before a request are none of it, however many.
        """
        if not (self.headers_finished or self.header_plus):
            request = data.lstrip(b"\r\n")
            if not request:
                return len(data)
            if len(request) < len(data):
                return len(data) - len(request) + self.received(request)
        in_headers, before = not self.headers_finished, self.header_plus
        try:
            consumed: int = super().received(data)
        except OSError:
            # A large body goes to a temporary file.
            message = "The server has no room to hold the body now. Retry later, or send less."
            self.error = Refusal(StorageFullError(message, retry_after=_STORAGE_SECONDS))
            consumed = len(data)
        if self.headers_finished and self.body_rcv is not None and not self.error:
            self.error = (self._refusal() if in_headers else None) or self._body_refusal()
        if self.error:
            self._refuse(self.error)
            if in_headers:
                self._mark(before + data)
        # Behind the last request nothing is read: whatever came with it would be parsed for nobody.
        return len(data) if self.completed and self.ends_connection else consumed

    def get_body_stream(self) -> BytesIO:
        """Return the body; a refused request's is not read by anybody."""
        return BytesIO() if self.error else super().get_body_stream()

    def close(self) -> None:
        """Let go of the body. On a full disk its file cannot keep the rest of it, nor has to."""
        with contextlib.suppress(OSError):
            super().close()

    def parse_header(self, header_plus: bytes) -> None:
        """Parse the header block; raises ``ParsingError`` on anything dubious."""
        _check_syntax(header_plus)
        codings = _CODINGS.findall(header_plus)
        try:
            super().parse_header(_PADDING.sub(rb"\n\1 ", header_plus))
        except ValueError:
            # An IPv6 address without its end, or a Content-Length of thousands of digits.
            message = "The request line or Content-Length cannot be read"
            raise ParsingError(message) from None
        if codings and ("CONTENT_LENGTH" in self.headers or self.version != "1.1"):
            message = "Transfer-Encoding goes with HTTP/1.1 and without Content-Length only"
            raise ParsingError(message)
        if codings and self.body_rcv is not None:
            self.body_rcv = Chunks(self.body_rcv.getbuf())
        self._take_target()
        self._take_connection()
        hosts = len(_HOSTS.findall(header_plus))
        if hosts > 1 or (self.version == "1.1" and not hosts):
            message = "The header Host must be there once"
            raise ParsingError(message)
        if not codings and self.content_length == 0:
            # waitress would answer "100 Continue" and wait for a body that never comes.
            self.expect_continue = False

    def _take_target(self) -> None:
        """Take the target's host for the header's, where it has one, and its many slashes for one.

        As whoever stands in front has to read it, and as the environment will have it.
        """
        parsed = vars(self)
        if parsed["proxy_scheme"]:
            parsed["headers"]["HOST"] = parsed["proxy_netloc"]
        if self.path.startswith("/"):
            self.path = "/" + self.path.lstrip("/")
        if self.path.removesuffix("/") in GENERATION_PATHS:
            self.path = self.path.removesuffix("/")  # the same route

    def _take_connection(self) -> None:
        """Read what the request wants of its connection, of which waitress reads single words."""
        headers: dict[str, str] = vars(self)["headers"]
        wanted = {each.strip().lower() for each in headers.get("CONNECTION", "").split(",")}
        stays = self.version == "1.1" or (self.version == "1.0" and "keep-alive" in wanted)
        self.connection_close = self.is_last or "close" in wanted or not stays
        headers["CONNECTION"] = "close" if self.connection_close else "keep-alive"

    def _refuse(self, error: Error) -> None:
        if isinstance(error, RequestHeaderFieldsTooLarge):
            # waitress has read a request line of its own.
            self.command = _UNREAD
        self.error = refusal_of(error)
        # waitress would ask for the body that it has refused, and wait for it.
        self.expect_continue = False
        self.completed = True

    def _mark(self, data: bytes) -> None:
        """Find by what the client knows its request, where the headers could not be read."""
        headers: dict[str, str] = vars(self)["headers"]
        head, _, _ = data.lstrip().partition(b"\r\n\r\n")
        if self.command == _UNREAD and head.startswith(b"HEAD "):
            self.command = "HEAD"  # whose answer has no body
        found: dict[bytes, list[bytes]] = {}
        for name, value in _MARKS.findall(head):
            found.setdefault(name.upper().replace(b"-", b"_"), []).append(value.strip(b" \t"))
        for key, values in found.items():
            headers[key.decode()] = b", ".join(values).decode("latin-1")

    @property
    def has_begun(self) -> bool:
        """Whether anything of a request has come."""
        return self.completed or self.headers_finished or bool(self.header_plus)

    @property
    def ends_connection(self) -> bool:
        """Whether no request can follow on the connection."""
        return bool(self.error) or self.connection_close

    @property
    def _body_limit(self) -> int:
        """How many bytes the body may have."""
        most = self._options.max_body_bytes
        reads = self.command == "POST" and self.path in GENERATION_PATHS
        return most if reads else min(most, _SMALL_BODY)

    def _too_large(self) -> Error:
        limit = self._body_limit
        if limit == self._options.max_body_bytes:
            return Refusal(too_large(limit))
        message = f"No body of more than {limit} bytes is read here. Send it to a route that does."
        return Refusal(BodyTooLargeError(message))

    def _body_refusal(self) -> Error | None:
        """Return what is wrong with what has come of the body."""
        body: Any = self.body_rcv
        if len(body) > self._body_limit:
            return self._too_large()
        if self.chunked and self.body_bytes_received > 2 * len(body) + _FRAMING:
            return BadRequest(
                "The chunks of a body must have more bytes than say how many they are"
            )
        return None

    def _refusal(self) -> Error | None:
        """Return what is wrong with a request whose body has yet to come."""
        if self.content_length > self._body_limit:
            return self._too_large()
        if self.path.startswith("/v1/") and self.path not in METRICS_PATHS:
            try:
                check_api_key(self.headers.get("AUTHORIZATION", ""), self._options.api_keys)
            except AuthenticationError as error:
                return Refusal(error)
        return None


def _check_syntax(header_plus: bytes) -> None:
    """Raise ``ParsingError`` where a header block is not what all parsers would take for the same."""
    codings = _CODINGS.findall(header_plus)
    if codings and (len(codings) > 1 or codings[0].strip().lower() != b"chunked"):
        message = "Transfer-Encoding must be 'chunked', once, or be left out"
        raise ParsingError(message)
    if header_plus.count(b"\r\n") > _MOST_LINES:
        message = f"A request must not have more than {_MOST_HEADERS} headers"
        raise ParsingError(message)
    if _FOLD.search(header_plus):
        message = "A header must not go on in the next line"
        raise ParsingError(message)
    if not _LINE.fullmatch(header_plus.partition(b"\r\n")[0].rstrip()):
        message = "The request line must be a method, a target and a version"
        raise ParsingError(message)
