"""Mixed traffic against a running server, and what its clients saw: the truth to reconcile with."""

from __future__ import annotations

import http.client
import json
import math
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from support.request_kinds import CHAT, COMPLETIONS, UNREAD, draw_request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.client import RunningServer
    from support.request_kinds import DrawnRequest

__all__ = ["REFUSALS", "Seen", "Traffic"]

REFUSALS = {
    "draining": "draining",
    "engine_unavailable": "engine_down",
    "memory": "memory",
    "queue_full": "queue_full",
    "queue_timeout": "deadline",
    "rate_limit_exceeded": "rate",
    "request_too_large": "too_large",
}
"""What refuses a request before anything is started, as metrics name it, by what clients are told."""
_CHUNK = 64 * 1024
_TRIES = 150
_LEFT = 499
"""What is recorded of a client that left before there was a status."""
_UNANSWERED_SECONDS = 0.2
"""How long one waits at most that does not wait for its answer."""


@dataclass
class Seen:
    """What the client of one request saw."""

    kind: str
    drawn: DrawnRequest
    request_id: str
    trace_id: str
    """Empty where it sent none."""
    status: int = 0
    left: bool = False
    """Whether it closed the connection before the end."""
    error_code: str = ""
    endings: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    chunks: int = 0
    """Pieces of text that it got."""
    sent_at: float = 0.0
    """By the monotonic clock, as all times here."""
    answered_at: float = 0.0
    """When the headers of the answer had come; infinity for one that did not wait for them."""
    first_at: float = 0.0
    """When the first piece of text came; streams alone."""
    ended_at: float = 0.0

    @property
    def method(self) -> str:
        """In telemetry's words."""
        return self.drawn.method

    @property
    def route(self) -> str:
        """The rule that its path has; empty for none, and where it cannot be read."""
        return self.drawn.route

    @property
    def generates(self) -> bool:
        """Whether it counts as a request to generate: one that is read at all."""
        asks = self.route in {CHAT, COMPLETIONS} and self.method == "POST"
        return asks and not self.drawn.unread

    @property
    def refusal(self) -> str:
        """What refused it, in metrics' words; empty where it was begun, or was no such request."""
        begun = self.left or self.chunks
        return "" if begun else REFUSALS.get(self.error_code, "")

    @property
    def finish_reason(self) -> str:
        """How it ended, in telemetry's words."""
        if self.left:
            return "cancelled"
        if self.error_code:
            return "refused" if self.refusal else "error"
        return "length" if "length" in self.endings else "stop"

    @property
    def error_type(self) -> str:
        """The error, in telemetry's words."""
        return "client_gone" if self.left else self.error_code


class Traffic:
    """Sends requests of all kinds, chosen by a seed, and keeps what was seen."""

    def __init__(self, server: RunningServer, seed: int, *, key: str = "") -> None:
        self._server = server
        self._key = {"Authorization": f"Bearer {key}"} if key else {}
        self._random = random.Random(seed)
        self.seen: list[Seen] = []

    def run(self, kinds: dict[str, int], *, clients: int) -> None:
        """Send so many requests of each kind, mixed, from so many clients at the same time."""
        plan = [kind for kind, count in kinds.items() for _ in range(count)]
        self._random.shuffle(plan)
        jobs = [(kind, self._random.getrandbits(64)) for kind in plan]
        with ThreadPoolExecutor(clients) as pool:
            self.seen += pool.map(lambda job: self.send(*job), jobs)

    def send(self, kind: str, seed: int = 0, *, leave: Callable[[], bool] = lambda: False) -> Seen:
        """Send one request and return what came of it.

        Args:
            kind: See :mod:`support.request_kinds`.
            seed: Draws it. Two of a kind need different ones, as their ids are made of it.
            leave: Asked with each piece of text that comes whether to leave.
        """
        request_id = f"{kind}-{seed:x}"
        draw = random.Random(request_id)
        drawn = draw_request(kind, draw)
        seen = Seen(kind, drawn, request_id, f"{draw.getrandbits(128) | 1:032x}")
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=40)
        connection.connect()
        try:
            seen.sent_at = time.monotonic()
            if kind == "leave-plain":
                self._ask(connection, seen)
                time.sleep(draw.uniform(0.0, _UNANSWERED_SECONDS))
                seen.status, seen.left, seen.answered_at = _LEFT, True, math.inf
                return seen
            if drawn.path:
                self._ask(connection, seen)
                response = connection.getresponse()
            else:
                response = _send_rubbish(connection, seen, drawn.body)
            seen.answered_at = time.monotonic()
            seen.status = response.status
            limit = draw.randrange(1, 12)
            if response.headers["Content-Type"].startswith("text/event-stream"):
                seen.left = kind == "leave-early" or _read_stream(
                    response, seen, lambda: leave() or (kind == "leave" and seen.chunks >= limit)
                )
            else:
                _take(seen, json.loads(response.read() or b"{}"))
            return seen
        finally:
            seen.ended_at = time.monotonic()
            connection.close()

    def until(self, kind: str, accept: Callable[[Seen], bool]) -> None:
        """Send requests of a kind, ten a second, until what came of one is accepted."""
        for _ in range(_TRIES):
            seen = self.send(kind, self._random.getrandbits(64))
            self.seen.append(seen)
            if accept(seen):
                return
            time.sleep(0.1)
        raise AssertionError(
            f"none of {_TRIES} requests of the kind {kind} was it; {self.seen[-1]}"
        )

    def _ask(self, connection: http.client.HTTPConnection, seen: Seen) -> None:
        drawn = seen.drawn
        data = drawn.body if isinstance(drawn.body, bytes) else json.dumps(drawn.body).encode()
        connection.request(
            "GET" if drawn.method == UNREAD else drawn.method,
            drawn.path,
            (_chunks(data) if drawn.chunked else data) if drawn.method == "POST" else None,
            {
                "Content-Type": "application/json",
                "X-Request-Id": seen.request_id,
                "traceparent": f"00-{seen.trace_id}-00f067aa0ba902b7-01",
                **self._key,
                **({"Transfer-Encoding": "chunked"} if drawn.chunked else {}),
                **drawn.headers,
            },
            encode_chunked=drawn.chunked,
        )

    # -- the sums -------------------------------------------------------------

    @property
    def generations(self) -> list[Seen]:
        """The requests to generate."""
        return [each for each in self.seen if each.generates]

    def refusals(self) -> Counter[str]:
        """Count what was refused before anything was started, by what refused it."""
        return Counter(each.refusal for each in self.seen if each.refusal)

    def finished(self) -> Counter[tuple[str, str]]:
        """Count generations by finish reason and error."""
        return Counter((each.finish_reason, each.error_type) for each in self.generations)

    def answered(self) -> Counter[tuple[str, str, int, str]]:
        """Count the requests by method, route, status and error."""
        return Counter(
            (each.method, each.route, each.status, each.error_type) for each in self.seen
        )

    def tokens(self) -> tuple[int, int, int]:
        """Sum prompt, cached and generated tokens as ``usage`` had them, of whole answers."""
        whole = [each for each in self.generations if each.finish_reason in {"stop", "length"}]
        return (
            sum(each.prompt_tokens for each in whole),
            sum(each.cached_tokens for each in whole),
            sum(each.completion_tokens for each in whole),
        )


def _chunks(data: bytes) -> Iterator[bytes]:
    for begin in range(0, len(data), _CHUNK):
        yield data[begin : begin + _CHUNK]


def _send_rubbish(
    connection: http.client.HTTPConnection, seen: Seen, data: bytes
) -> http.client.HTTPResponse:
    """Send what has no id; the answer has one."""
    connection.sock.sendall(data)
    response = http.client.HTTPResponse(connection.sock)
    response.begin()
    seen.request_id, seen.trace_id = response.headers["X-Request-Id"], ""
    return response


def _read_stream(response: http.client.HTTPResponse, seen: Seen, leave: Callable[[], bool]) -> bool:
    """Read events to the end, or until the client leaves; return whether it did."""
    for line in response:
        if not line.startswith(b"data: ") or line == b"data: [DONE]\n":
            continue
        event = json.loads(line[6:])
        _take(seen, event)
        if any(choice["delta"].get("content") for choice in event.get("choices", ())):
            seen.chunks += 1
            seen.first_at = seen.first_at or time.monotonic()
            if leave():
                return True
    return False


def _take(seen: Seen, answer: dict[str, Any]) -> None:
    """Note what an answer, or an event of one, says of its end."""
    if "error" in answer:
        seen.error_code = answer["error"]["code"]
    seen.endings += [
        choice["finish_reason"] for choice in answer.get("choices", ()) if choice["finish_reason"]
    ]
    usage = answer.get("usage")
    if usage:
        seen.prompt_tokens = usage["prompt_tokens"]
        seen.completion_tokens = usage["completion_tokens"]
        seen.cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]
