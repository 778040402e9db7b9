"""Requests of a battery of faults, drawn by a seed, and what a client gets for each."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "CHAT",
    "NO_END",
    "Ask",
    "Client",
    "Reply",
    "ask_all",
    "draw_asks",
    "endless_asks",
    "large_body",
    "sequences_of",
]

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
_WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "rain",
    "falls",
    "on",
    "grey",
    "stones",
]
NO_END = {str(token): -100 for token in range(256, 260)}
"""Bias that keeps the tiny model from ending early, so that a fault finds it at work."""
_PATIENCE = 45.0


@dataclass(frozen=True)
class Ask:
    """One request."""

    path: str
    body: dict[str, Any]

    @property
    def streams(self) -> bool:
        """Whether the answer comes as events."""
        return bool(self.body.get("stream"))

    @property
    def sequences(self) -> int:
        """How many texts are asked for: choices of each prompt."""
        return sequences_of(self.body)


@dataclass
class Reply:
    """All that a client got for one request."""

    ask: Ask
    status: int = 0
    """0 where the connection broke before there was one."""
    ends: int = 0
    """How often the answer ended: 1 for whatever is whole, ``[DONE]`` or a body of its length."""
    texts: dict[int, str] = field(default_factory=dict)
    finishes: dict[int, list[str]] = field(default_factory=dict)
    error: str = ""
    """The code of an error."""
    message: str = ""
    retry_after: str = ""
    left: bool = False
    """Whether the client closed the connection on purpose."""
    seconds: float = 0.0
    ended_at: float = 0.0
    """By the monotonic clock."""

    @property
    def whole(self) -> bool:
        """Whether the answer is what was asked for."""
        return self.status == 200 and self.ends == 1 and not self.error and not self.left


def sequences_of(body: Mapping[str, Any]) -> int:
    """Return how many texts a request asks for."""
    prompt = body.get("prompt", "")
    return int(body.get("n", 1)) * (len(prompt) if isinstance(prompt, list) else 1)


def draw_asks(count: int, seed: int, *, mark: str, tokens: int = 120) -> list[Ask]:
    """Return requests of every kind: streams, bodies, seeds, choices, stop strings, prompts.

    Args:
        count: How many.
        seed: The same seed draws the same requests.
        mark: A word that stands in each prompt and must be found nowhere else.
        tokens: Of the longest answer.
    """
    draw = random.Random(seed)
    return [_draw_ask(draw, mark, tokens) for _ in range(count)]


def _draw_ask(draw: random.Random, mark: str, tokens: int) -> Ask:
    text = f"{mark} " + " ".join(draw.choices(_WORDS, k=draw.randrange(3, 40)))
    body: dict[str, Any] = {
        "model": "tiny",
        "max_tokens": draw.randrange(tokens // 2, tokens),
        "temperature": 0,
        "stream": draw.random() < 0.6,
        "logit_bias": NO_END,
    }
    kind = draw.choice(["greedy", "greedy", "seeded", "choices", "stop", "prompts"])
    if kind in {"seeded", "choices"}:
        body |= {"temperature": 1.0, "seed": draw.getrandbits(32)}
    if kind == "choices":
        body["n"] = 2
    if kind == "stop":
        body["stop"] = [draw.choice("abcdefghij") + draw.choice("klmnopq")]
    if kind == "prompts":
        return Ask(COMPLETIONS, body | {"prompt": [text, text[::-1]]})
    return Ask(CHAT, body | {"messages": [{"role": "user", "content": text}]})


def large_body(**fields: Any) -> dict[str, Any]:
    """Return a request whose answer is large: of several texts, with log probabilities of 20 each."""
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": "on and on"}],
        "logprobs": True,
        "top_logprobs": 20,
        "logit_bias": NO_END,
        **fields,
    }


def endless_asks() -> list[Ask]:
    """Return requests that would take minutes: streams, bodies, and some with several choices.

    Where the model has a window for them; see ``patient_model``.
    """
    body: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "on and on"}],
        "max_tokens": 60_000,
        "temperature": 0,
        "logit_bias": NO_END,
    }
    kinds: list[dict[str, Any]] = [{"stream": True}, {"stream": False}, {"stream": True, "n": 2}]
    return [Ask(CHAT, body | kind) for kind in kinds * 2]


class Client:
    """Sends one request and reads its answer to the end, or leaves it. Runs in its own thread.

    One that insists sends it again at once where it was told to come back later.
    """

    def __init__(
        self,
        port: int,
        ask: Ask,
        *,
        headers: Mapping[str, str],
        leave_after: int | None = None,
        attempts: int = 1,
        on_text: Callable[[int], None] = lambda _: None,
        on_bytes: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        """Prepare.

        Args:
            port: Of the server, on 127.0.0.1.
            ask: What to send.
            headers: What else goes with it, the key for one.
            leave_after: Events after which the client closes the connection; None stays.
            attempts: How often it is sent at most.
            on_text: Called with the length of each text of a stream.
            on_bytes: Called with all that comes: headers, bodies, lines of streams.
        """
        self._port = port
        self._headers = {"Content-Type": "application/json", **headers}
        self._leave_after = leave_after
        self._attempts = attempts
        self._on_text = on_text
        self._on_bytes = on_bytes
        self.replies = [Reply(ask)]
        """To each attempt, in their order."""

    @property
    def reply(self) -> Reply:
        """What came for the last attempt."""
        return self.replies[-1]

    def run(self) -> None:
        """Send and read. What breaks the connection shows in the reply as an end that is missing."""
        self._attempt()
        while self.reply.status == 503 and len(self.replies) < self._attempts:
            self.replies.append(Reply(self.reply.ask))
            self._attempt()

    def _attempt(self) -> None:
        begin = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_PATIENCE)
        try:
            body = json.dumps(self.reply.ask.body)
            connection.request("POST", self.reply.ask.path, body, self._headers)
            if self._leave_after == 0:
                self.reply.left = True
                return
            self._read(connection.getresponse())
        except (OSError, http.client.HTTPException) as error:
            self.reply.message = f"{type(error).__name__}: {error}"
        finally:
            connection.close()
            self.reply.ended_at = time.monotonic()
            self.reply.seconds = self.reply.ended_at - begin

    def _read(self, response: http.client.HTTPResponse) -> None:
        reply = self.reply
        reply.status = response.status
        reply.retry_after = response.headers.get("Retry-After", "")
        self._on_bytes(str(response.headers).encode())
        if response.headers.get("Content-Type", "").startswith("text/event-stream"):
            self._read_events(response)
            return
        data = response.read()
        self._on_bytes(data)
        answer = json.loads(data)
        reply.ends += 1
        if "error" in answer:
            self._take_error(answer["error"])
        for choice in answer.get("choices", ()):
            text = choice["message"]["content"] if "message" in choice else choice["text"]
            reply.texts[choice["index"]] = text
            reply.finishes[choice["index"]] = [choice["finish_reason"]]

    def _read_events(self, response: http.client.HTTPResponse) -> None:
        reply, seen = self.reply, 0
        for line in response:
            self._on_bytes(line)
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                reply.ends += 1
                continue
            event = json.loads(line[6:])
            if "error" in event:
                self._take_error(event["error"])
            for choice in event.get("choices", ()):
                text = choice.get("text") or choice.get("delta", {}).get("content") or ""
                index = choice["index"]
                reply.texts[index] = reply.texts.get(index, "") + text
                self._on_text(len(text))
                if choice.get("finish_reason"):
                    reply.finishes.setdefault(index, []).append(choice["finish_reason"])
            seen += 1
            if self._leave_after is not None and seen >= self._leave_after:
                reply.left = True
                return

    def _take_error(self, error: dict[str, Any]) -> None:
        self.reply.error = str(error["code"])
        self.reply.message = error["message"]


def ask_all(clients: Sequence[Client]) -> list[threading.Thread]:
    """Start all clients at the same time; the caller joins the threads."""
    threads = [threading.Thread(target=client.run, daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    return threads
