"""The kinds of requests that traffic is mixed from. A seed draws one of a kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from support.dangerous_model import KILLS, SLOWS, STARVES

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping

    _Kind = Callable[[random.Random, dict[str, Any]], "DrawnRequest"]

__all__ = [
    "BODY_LIMIT",
    "CHAT",
    "COMPLETIONS",
    "CONTEXT_LENGTH",
    "GREEDY_KEY",
    "GREEDY_TOKENS",
    "KINDS",
    "UNREAD",
    "DrawnRequest",
    "draw_request",
]

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
UNREAD = "_OTHER"
"""Telemetry's word for a method that could not be read."""
CONTEXT_LENGTH = 32768
"""Of the model that all kinds are made for."""
BODY_LIMIT = 512 * 1024
"""Bytes. A third more than it is still read by the server; twice as much is not."""
GREEDY_KEY = "greedy-key"
_CHOICES = 40
GREEDY_TOKENS = _CHOICES * 20_000
"""What a greedy request is charged at first: more than its key may use in a minute."""
_BEGINNING = "Every prompt begins alike, and the prompt cache knows it. "
_EOS_OFF = {"257": -100, "258": -100, "259": -100, "256": -100}
_PIECE = 1000
"""Tokens that are more than one chunk of a prefill, where engines have died and take small ones."""


@dataclass(frozen=True)
class DrawnRequest:
    """One request, ready to be sent."""

    method: str
    """In telemetry's words."""
    path: str
    """Empty for bytes that are no request."""
    route: str
    """The rule that its path has; empty for none, and where it cannot be read."""
    body: Any
    """Bytes as they are, all else as JSON."""
    headers: dict[str, str] = field(default_factory=dict)
    chunked: bool = False
    """Whether the body is sent in chunks, its length not declared."""
    unread: bool = False
    """Whether it is refused before all of it was read: it is no request to generate then."""


def draw_request(kind: str, draw: random.Random) -> DrawnRequest:
    """Return a request of a kind.

    Args:
        kind: One of :data:`KINDS`.
        draw: Chooses all that the kind leaves open.
    """
    text = _BEGINNING + "".join(draw.choices("abcdefgh ", k=draw.randrange(5, 120)))
    chat: dict[str, Any] = {
        "model": draw.choice(["tiny", "org/other"]),
        "messages": _says(text),
        "max_tokens": draw.randrange(1, 16),
        "seed": draw.getrandbits(31),
    }
    return KINDS[kind](draw, chat)


def _fields(**fields: Any) -> _Kind:
    """Return a kind of chats that have these fields besides."""
    return lambda _, chat: _post(chat | fields)


def _post(
    body: Any, headers: dict[str, str] | None = None, *, chunked: bool = False, unread: bool = False
) -> DrawnRequest:
    return DrawnRequest("POST", CHAT, CHAT, body, headers or {}, chunked, unread)


def _says(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def _bad(draw: random.Random, chat: dict[str, Any]) -> DrawnRequest:
    return draw.choice(
        [
            _post(b'{"model": "tiny", '),
            _post(chat | {"temperature": 9}),
            _post(chat | {"audio": {"format": "wav", "voice": "x"}}),
            _post(chat | {"model": f"m{draw.random()}"}),
            _post(chat | {"messages": _says("x" * 40_000)}),
            _post(chat, {"Content-Type": "text/plain"}),
            _post(chat, {"X-Request-Timeout": "soon"}),
            DrawnRequest("POST", f"/v1/{draw.random()}", "", chat),
            DrawnRequest("GET", CHAT, "", {}),
        ]
    )


def _refused(draw: random.Random, chat: dict[str, Any]) -> DrawnRequest:
    """Return what is refused before the whole of it was read."""
    two_lengths = {"Content-Length": "1", "Transfer-Encoding": "chunked"}
    huge = chat | {"messages": _says("x" * 2 * BODY_LIMIT)}
    return draw.choice(
        [
            _post(b"", {"Content-Length": "999999999"}, unread=True),
            _post(huge, unread=True),
            _post(huge, chunked=True, unread=True),
            _post(chat, {"Authorization": "Bearer wrong"}, unread=True),
            _post(chat, {"Authorization": ""}, unread=True),
            DrawnRequest("GET", "/v1/models", "/v1/models", {}, {"Authorization": "Bearer wrong"}),
            DrawnRequest(UNREAD, "/livez", "", {}, {"A": "a" * 70_000}, unread=True),
            DrawnRequest(UNREAD, "/livez", "", {}, {"A": "b\r\n c"}, unread=True),
            DrawnRequest("GET", "/livez", "/livez", {}, two_lengths, unread=True),
            DrawnRequest(UNREAD, "", "", draw.randbytes(20) + b"\xff\r\n\r\n", unread=True),
        ]
    )


def _report(draw: random.Random, _: dict[str, Any]) -> DrawnRequest:
    path = draw.choice(["/livez", "/readyz", "/v1/models", "/health"])
    return DrawnRequest("GET", path, path, {})


def _plain(draw: random.Random, chat: dict[str, Any]) -> DrawnRequest:
    ends = {"logit_bias": {"97": 100}, "stop": ["aaa"]} if draw.random() < 0.5 else {}
    return _post(chat | ends | {"n": draw.randrange(1, 4)})


def _stream(draw: random.Random, chat: dict[str, Any]) -> DrawnRequest:
    return _post(chat | _STREAMED | {"n": draw.randrange(1, 3)})


def _completion(draw: random.Random, chat: dict[str, Any]) -> DrawnRequest:
    text = _text_of(chat)
    prompt = [text, text[:3]] if draw.random() < 0.5 else text
    body = {"model": "tiny", "prompt": prompt, "max_tokens": draw.randrange(1, 9)}
    return DrawnRequest("POST", COMPLETIONS, COMPLETIONS, body)


def _half_bad(_: random.Random, chat: dict[str, Any]) -> DrawnRequest:
    # While it finds the first prompt too long, the engine runs the other one.
    body = {"model": "tiny", "prompt": ["x" * 400_000, _text_of(chat)], "max_tokens": 200}
    return DrawnRequest("POST", COMPLETIONS, COMPLETIONS, body)


def _late(draw: random.Random, chat: dict[str, Any]) -> DrawnRequest:
    return _post(chat, {"X-Request-Timeout": f"{draw.uniform(0.1, 0.4):.3f}"})


def _rated(draw: random.Random, chat: dict[str, Any]) -> DrawnRequest:
    return _post(chat | {"stream": draw.random() < 0.5}, _GREEDY)


def _text_of(chat: dict[str, Any]) -> str:
    text: str = chat["messages"][0]["content"]
    return text


_GREEDY = {"Authorization": f"Bearer {GREEDY_KEY}"}
_STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
_ENDLESS = {"max_tokens": 8000, "stream": True, "logit_bias": _EOS_OFF}
# The slow chunk gives the engine time to tell of the one before, the last one kills it.
_DEADLY = f"{'a' * _PIECE}{SLOWS}{'b' * _PIECE}{KILLS}"

KINDS: Mapping[str, _Kind] = {
    "bad": _bad,
    "completion": _completion,
    "deadly": _fields(messages=_says(_DEADLY)),
    "endless": _fields(**_ENDLESS),
    "greedy": lambda _, chat: _post(
        chat | _ENDLESS | {"n": _CHOICES, "max_tokens": GREEDY_TOKENS // _CHOICES}, _GREEDY
    ),
    "half-bad": _half_bad,
    "late": lambda draw, chat: _late(draw, chat | _ENDLESS | {"stream": False}),
    "late-stream": lambda draw, chat: _late(draw, chat | _ENDLESS),
    "leave": _fields(**_ENDLESS),
    "leave-early": _fields(**_ENDLESS),
    "leave-plain": _fields(**(_ENDLESS | {"stream": False})),
    "long": _fields(**(_ENDLESS | _STREAMED | {"max_tokens": 600})),
    "never-fits": _fields(max_tokens=CONTEXT_LENGTH - 1000),
    "plain": _plain,
    "rated": _rated,
    "refused": _refused,
    "report": _report,
    "starved": _fields(messages=_says(STARVES)),
    "stream": _stream,
    "too-long": lambda _, chat: _post(
        chat | {"messages": _says("x" * (BODY_LIMIT + 1000))}, chunked=True, unread=True
    ),
    "wide": _fields(n=24, max_tokens=2),
}
"""What makes a request of each kind of a seed's choice and a chat."""
