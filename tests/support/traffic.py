"""Mixed traffic against a running server, and what its clients saw: the truth to reconcile with."""

from __future__ import annotations

import http.client
import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from support.client import RunningServer

__all__ = ["GENERATION_ROUTES", "Seen", "Traffic"]

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
GENERATION_ROUTES = {CHAT, COMPLETIONS}
_UNREAD = "_OTHER"
_BEGINNING = "Every prompt begins alike, and the prompt cache knows it. "
_EOS_OFF = {"257": -100, "258": -100, "259": -100, "256": -100}


@dataclass
class Seen:
    """What the client of one request saw."""

    kind: str
    method: str
    """In telemetry's words: ``_OTHER`` where it cannot be read."""
    path: str
    """Empty for bytes that are no request."""
    route: str
    """The rule that its path has; empty for none, and where it cannot be read."""
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
    first_at: float = 0.0
    """When the first piece of text came; streams alone."""
    ended_at: float = 0.0

    @property
    def generates(self) -> bool:
        """Whether it counts as a request to generate: one that is read at all."""
        asks = self.route in GENERATION_ROUTES and self.method == "POST"
        return asks and self.kind != "refused"

    @property
    def finish_reason(self) -> str:
        """How it ended, in telemetry's words."""
        if self.left:
            return "cancelled"
        if self.error_code:
            refused = self.error_code in {"queue_full", "engine_unavailable", "draining"}
            return "refused" if refused else "error"
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

    def send(self, kind: str, seed: int = 0) -> Seen:
        """Send one request and return what came of it."""
        draw = random.Random(seed)
        method, path, route, body, headers = _request(kind, draw)
        seen = Seen(
            kind, method, path, route, f"{kind}-{seed:x}", f"{draw.getrandbits(128) | 1:032x}"
        )
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=15)
        connection.connect()
        try:
            seen.sent_at = time.monotonic()
            if path:
                response = self._ask(connection, seen, body, headers)
            else:
                response = _send_rubbish(connection, seen, body)
            seen.status = response.status
            limits = {"leave": draw.randrange(1, 12), "leave-early": 0}
            if response.headers["Content-Type"].startswith("text/event-stream"):
                _read_stream(response, seen, limits.get(kind))
            else:
                _take(seen, json.loads(response.read() or b"{}"))
            return seen
        finally:
            seen.ended_at = time.monotonic()
            connection.close()

    def _ask(
        self,
        connection: http.client.HTTPConnection,
        seen: Seen,
        body: Any,
        headers: dict[str, str],
    ) -> http.client.HTTPResponse:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(
            "GET" if seen.method == _UNREAD else seen.method,
            seen.path,
            data if seen.method == "POST" else None,
            {
                "Content-Type": "application/json",
                "X-Request-Id": seen.request_id,
                "traceparent": f"00-{seen.trace_id}-00f067aa0ba902b7-01",
                **self._key,
                **headers,
            },
        )
        return connection.getresponse()

    # -- the sums -------------------------------------------------------------

    @property
    def generations(self) -> list[Seen]:
        """The requests to generate."""
        return [each for each in self.seen if each.generates]

    def finished(self) -> Counter[tuple[str, str]]:
        """Count generations by finish reason and error."""
        return Counter((each.finish_reason, each.error_type) for each in self.generations)

    def answered(self) -> Counter[tuple[str, str, int]]:
        """Count the requests that got an answer by method, route and status."""
        return Counter((each.method, each.route, each.status) for each in self.seen if each.status)

    def tokens(self) -> tuple[int, int, int]:
        """Sum prompt, cached and generated tokens as ``usage`` had them, of whole answers."""
        whole = [each for each in self.generations if each.finish_reason in {"stop", "length"}]
        return (
            sum(each.prompt_tokens for each in whole),
            sum(each.cached_tokens for each in whole),
            sum(each.completion_tokens for each in whole),
        )


def _request(kind: str, draw: random.Random) -> tuple[str, str, str, Any, dict[str, str]]:
    text = _BEGINNING + "".join(draw.choices("abcdefgh ", k=draw.randrange(5, 120)))
    chat: dict[str, Any] = {
        "model": draw.choice(["tiny", "org/other"]),
        "messages": [{"role": "user", "content": text}],
        "max_tokens": draw.randrange(1, 16),
        "seed": draw.getrandbits(31),
    }
    endless = {"max_tokens": 8000, "stream": True, "logit_bias": _EOS_OFF}
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    match kind:
        case "completion":
            prompt = [text, text[:3]] if draw.random() < 0.5 else text
            body = {"model": "tiny", "prompt": prompt, "max_tokens": draw.randrange(1, 9)}
            return "POST", COMPLETIONS, COMPLETIONS, body, {}
        case "bad":
            return _bad(draw, chat)
        case "half-bad":
            # While it finds the first prompt too long, the engine runs the other one.
            body = {"model": "tiny", "prompt": ["x" * 400_000, text], "max_tokens": 200}
            return "POST", COMPLETIONS, COMPLETIONS, body, {}
        case "refused":
            return _refused(draw, chat)
        case "report":
            path = draw.choice(["/livez", "/readyz", "/v1/models", "/health"])
            return "GET", path, path, {}, {}
    ends: dict[str, Any] = (
        {"logit_bias": {"97": 100}, "stop": ["aaa"]} if draw.random() < 0.5 else {}
    )
    more: dict[str, dict[str, Any]] = {
        "plain": ends | {"n": draw.randrange(1, 4)},
        "stream": streamed | {"n": draw.randrange(1, 3)},
        "wide": {"n": 40, "max_tokens": 2},
        "long": endless | streamed | {"max_tokens": 600},
    }
    return "POST", CHAT, CHAT, chat | more.get(kind, endless), {}


def _bad(draw: random.Random, chat: dict[str, Any]) -> tuple[str, str, str, Any, dict[str, str]]:
    message = [{"role": "user", "content": "x" * 20_000}]
    return draw.choice(
        [
            ("POST", CHAT, CHAT, b'{"model": "tiny", ', {}),
            ("POST", CHAT, CHAT, chat | {"temperature": 9}, {}),
            ("POST", CHAT, CHAT, chat | {"audio": {"format": "wav", "voice": "x"}}, {}),
            ("POST", CHAT, CHAT, chat | {"model": f"m{draw.random()}"}, {}),
            ("POST", CHAT, CHAT, chat | {"messages": message}, {}),
            ("POST", CHAT, CHAT, chat, {"Content-Type": "text/plain"}),
            ("POST", f"/v1/{draw.random()}", "", chat, {}),
            ("GET", CHAT, "", {}, {}),
        ]
    )


def _refused(
    draw: random.Random, chat: dict[str, Any]
) -> tuple[str, str, str, Any, dict[str, str]]:
    """Return what is refused before the whole of it was read."""
    return draw.choice(
        [
            ("POST", CHAT, CHAT, b"", {"Content-Length": "999999999"}),
            ("POST", CHAT, CHAT, chat, {"Authorization": "Bearer wrong"}),
            (_UNREAD, "/livez", "", {}, {"A": "a" * 70_000}),
            (_UNREAD, "/livez", "", {}, {"A": "b\r\n c"}),
            (
                "GET",
                "/livez",
                "/livez",
                {},
                {"Content-Length": "1", "Transfer-Encoding": "chunked"},
            ),
            (_UNREAD, "", "", draw.randbytes(20) + b"\xff\r\n\r\n", {}),
        ]
    )


def _send_rubbish(
    connection: http.client.HTTPConnection, seen: Seen, data: bytes
) -> http.client.HTTPResponse:
    """Send what has no id; the answer has one."""
    connection.sock.sendall(data)
    response = http.client.HTTPResponse(connection.sock)
    response.begin()
    seen.request_id, seen.trace_id = response.headers["X-Request-Id"], ""
    return response


def _read_stream(response: http.client.HTTPResponse, seen: Seen, limit: int | None) -> None:
    if limit == 0:
        seen.left = True
        return
    for line in response:
        if not line.startswith(b"data: ") or line == b"data: [DONE]\n":
            continue
        event = json.loads(line[6:])
        _take(seen, event)
        if any(choice["delta"].get("content") for choice in event.get("choices", ())):
            seen.chunks += 1
            seen.first_at = seen.first_at or time.monotonic()
        if limit is not None and seen.chunks >= limit:
            seen.left = True
            return


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
