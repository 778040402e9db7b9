"""Requests of which no two parsers may think differently, because one of them stands in front."""

from __future__ import annotations

__all__ = ["HEADS"]

HEADS = {
    "no version": (b"GET /livez\r\n\r\n", 200),
    "another version": (b"GET /livez HTTP/2.0\r\nHost: localhost\r\n\r\n", 400),
    "lower case method": (b"get /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "no request line": (b":::\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "bad header": (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n", 400),
    "bare CR": (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nA: b\rc\r\n\r\n", 400),
    "bad length": (b"POST /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
    "long length": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        400,
    ),
    "two lengths": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        400,
    ),
    "bad address": (b"GET http://[::1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "huge header": (
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nA: " + b"a" * 70_000 + b"\r\n\r\n",
        400,
    ),
    "long padding": (
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nA:" + b" " * 60_000 + b"a\r\n\r\n",
        200,
    ),
    "long padding of tabs": (
        b"GET /livez HTTP/1.1\r\nHost:" + b" \t" * 30_000 + b"localhost\r\n\r\n",
        200,
    ),
    "long address": (b"GET a://" + b"1" * 60_000 + b" X\r\nHost: localhost\r\n\r\n", 400),
    "long target": (b"GET /" + b"a:" * 30_000 + b" HTTP/11\r\nHost: localhost\r\n\r\n", 400),
    "long method": (b"A" * 60_000 + b"\r\nHost: localhost\r\n\r\n", 400),
    "200 headers": (
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 199 + b"\r\n",
        200,
    ),
    "201 headers": (
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        400,
    ),
    "large body for a probe": (
        b"POST /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 70000\r\n\r\nx",
        400,
    ),
    "large body for no route": (
        b"POST //v1/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 70000\r\n\r\nx",
        400,
    ),
    "large chunk for a probe": (
        b"POST /livez HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n11170\r\n"
        + b"a" * 70_000,
        400,
    ),
    "length and chunks": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "chunked twice": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
    ),
    "gzip coding": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        400,
    ),
    "chunks in 1.0": (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "no host": (b"GET /livez HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
    "no host in 1.0": (b"GET /livez HTTP/1.0\r\n\r\n", 200),
    "folded header": (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nA: b\r\n c\r\n\r\n", 400),
    "bare LF": (b"GET /livez HTTP/1.1\nHost: localhost\n\n\r\n\r\n", 400),
    "LF in a header": (b"GET /livez HTTP/1.1\r\nHost: localhost\nA: b\r\n\r\n", 400),
    "space before the colon": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length : 1\r\n\r\nx",
        400,
    ),
    "plus length": (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: +1\r\n\r\nx", 400),
    "same length twice": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        400,
    ),
    "NUL in a header": (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nA: b\x00c\r\n\r\n", 400),
    "space in the method": (b"GE T /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "chunked after a tab": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding:\tidentity, chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "chunk of negative length": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n",
        400,
    ),
    "LF after a chunk's size": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\nx",
        400,
    ),
    "LF CR LF after a chunk's size": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\n\r\nx",
        400,
    ),
    "no chunk's size": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
        400,
    ),
    "chunks of one byte": (
        b"POST /livez HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"1\r\na\r\n" * 30_000,
        400,
    ),
    "LF in a chunk's extension": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1;a\nx",
        400,
    ),
    "LF before a chunk's extension": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\n;a\r\n",
        400,
    ),
    "long extension": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"a" * 2000,
        400,
    ),
    "LF in a trailer": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\nC: d\r\n\r\n",
        400,
    ),
    "LF before a trailer": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\nA: b\r\n\r\n",
        400,
    ),
    "CR in a trailer": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\rC: d\r\n\r\n",
        400,
    ),
    "long trailer": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: "
        + b"a" * 10_000,
        400,
    ),
    "bad chunk": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        400,
    ),
}
"""By what is odd about them: the bytes, and the status; 400 stands for 413 and 431, too."""
