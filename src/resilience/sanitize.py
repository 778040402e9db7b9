"""Text that others wrote, without what must not be shown: paths, line numbers, keys, tokens.

For log lines, metrics and spans that carry the words of a library, the kernel
or an index. Messages to clients are never made from such text at all.

One pass over the text with one expression. Every repetition in it is bounded or
possessive, and begins at a border that occurs once per run of characters, so
the time grows with the length of the text alone, whatever the text is.

What it knows is a list, and lists have gaps. It takes a path that is relative
and looks like words for words (``models/private``), since ``and/or`` has the
same shape; a file's bare name stays; so does an opaque string that no name and
no prefix tells to be a secret.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["sanitize_error_message"]

PATH = "[path]"
SECRET = "[secret]"  # noqa: S105 - what stands for one
LINE = "[line]"

_MARKERS = r"\[(?:path|secret|line)\]"

_NAME = r"""
    (?:[A-Za-z0-9]{1,40}[_.-]){0,6}
    (?:api[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key|signing[_-]?key|encryption[_-]?key
    |(?:access|auth|id|refresh|session|bearer|hub|hf|csrf|sas)?[_-]?token|client[_-]?secret|secret
    |passwords?|passwd|passphrase|pwd|credentials?|x-amz-signature|signature|sig|cookie|set-cookie
    |(?:proxy-)?authorization)
"""
"""Names whose value is a secret, also after ``:``. ``max_tokens`` and ``tokenizer`` are none."""

_VALUE = rf"""
    (?:"(?:[^"\\\n]|\\.){{0,4096}}+"?
    |'(?:[^'\\\n]|\\.){{0,4096}}+'?
    |(?!{_MARKERS})[^\s,;&'"()\[\]{{}}<>]++)
"""

_SOURCE = r"""(?:py|pyc|pyi|pyx|c|cc|cpp|cxx|h|hpp|m|mm|metal|cu|rs|go|js|ts|json|jsonl|toml|ya?ml
    |txt|jinja2?|safetensors|gguf|so|dylib|log|cfg|conf|ini|sh|md)"""

_SEGMENT = r"""[^\s/\\'"`<>|*?,;:()\[\]{}]"""
_REST = r"""[^\s'"`<>|*?,;()\[\]{}]"""
_SPACED = rf"""
    (?:[ ](?!(?-i:[a-z]++/[a-z]++|\d++/\d++)(?![\w/\\]))
       (?:{_SEGMENT}{{1,64}}[ ]){{0,2}}{_SEGMENT}{{1,64}}[/\\]{_REST}*+){{0,4}}
"""
"""A path goes on after a space where one of the next words has a slash: ``Application Support/x``;
two plain words with a slash between them are prose."""

_PATTERN = re.compile(
    rf"""
    (?P<marker>{_MARKERS})
    |(?P<pem>-----BEGIN\ [A-Z ]{{1,40}}-----.*?(?:-----END\ [A-Z ]{{1,40}}-----|\Z))
    |(?P<url>(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{{0,30}}+://[^\s'"<>`]++)
    |(?P<quoted>(?P<quote>['"`])
        (?:[/~\\]|[A-Za-z]:[/\\]|\.{{1,2}}[/\\]|\$\{{?\w{{1,40}}\}}?[/\\]|%\w{{1,40}}%[/\\])
        (?=[^'"`\n]{{2}})[^'"`\n]{{1,4096}}+)
    |(?P<named>(?<![A-Za-z0-9_.-])["']?(?:{_NAME})["']?\s{{0,4}}[=:]\s{{0,4}}+)
        (?P<scheme>(?:bearer|basic|digest|token)\s{{1,4}}+)?(?P<value>{_VALUE})
    |(?P<key>(?<![A-Za-z0-9_.-])(?:[A-Za-z0-9]{{1,40}}[_-]){{0,6}}key=)(?P<keyed>{_VALUE})
    |(?P<bearer>\b(?:bearer|basic)\s{{1,4}}+)
        (?P<credential>(?-i:(?=[A-Za-z]{{0,200}}(?:\d|[._~+/=-][A-Za-z\d])|[a-z]{{1,200}}[A-Z]))[A-Za-z0-9._~+/=-]{{8,}}+)
    |(?P<known>(?<![A-Za-z0-9])(?:
        eyJ[\w-]{{5,}}+(?:\.[\w-]++){{1,4}}
        |(?:sk|pk|rk)[-_](?-i:(?=[a-z_-]{{0,200}}[A-Z0-9]))[\w-]{{6,}}+
        |(?:hf|api_org|npm|glpat|pypi|xox[abeoprs]|ya29)[-_.](?-i:(?=[a-z_-]{{0,200}}[A-Z0-9]))[\w.-]{{6,}}+
        |(?:gh[oprsu]|github_pat)_\w{{6,}}+
        |(?-i:A[KS]IA[A-Z0-9]{{12,}}+)
        |AIza[\w-]{{20,}}+))
    |(?P<line>,?\ ?\blines?\ \d++(?:(?:-|\ to\ )\d++)?)
    |(?P<numbered>(?<![\w.-])[\w-]{{1,128}}(?:\.[\w-]{{1,64}}){{0,8}}\.{_SOURCE}):\d++(?::\d++)?
    |(?P<path>(?:
        (?<![\w/\\<])/[\w.@%$~]
        |(?<=<)/[\w.@%$~+-]{{1,255}}+/
        |(?<![\w/\\~])~[\w.-]{{0,64}}[/\\]
        |(?<![A-Za-z0-9_])[A-Za-z]:[/\\]
        |(?<![\w\\])\\\\[\w.?$-]
        |(?<![\w./\\])\.{{1,2}}[/\\]
        |(?<![\w$])\$(?:\w{{1,64}}+|\{{\w{{1,64}}\}})[/\\]
        |%\w{{1,64}}%[/\\]
        )(?:{_REST}*+){_SPACED})
    |(?P<relative>(?<![\w./\\-])(?:[\w.-]{{1,128}}+[/\\]){{1,64}}
        (?:(?:[\w-]{{1,128}}\.){{1,8}}[A-Za-z][A-Za-z0-9]{{0,11}}\b(?![/\\]))(?::\d++)?)
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)

_LOCAL_SCHEMES = frozenset({"file", "sqlite", "unix", "ipc"})
_QUERY_SECRET = re.compile(
    rf"^(?:{_NAME}|key|code|state|x-amz-\w+|token)$", re.VERBOSE | re.IGNORECASE
)
_URL = re.compile(r"([^:]++://)([^/?#]*+)([^?#]*+)(\?[^#]*+)?(#.*+)?", re.DOTALL)
_PROSE = re.compile(r"(?:token|signature):\s+[A-Za-z]{1,24}[.!?]?", re.IGNORECASE)
"""What parsers say: ``unexpected token: else``."""
_TRAILING = ".,;:!?)"


def sanitize_error_message(text: str) -> str:
    """Return the text with ``[path]``, ``[secret]`` and ``[line]`` for what must not be shown.

    Ordinary prose comes back as it was; so does what this returned before.
    """
    return _PATTERN.sub(_replacement, text)


def _replacement(match: re.Match[str]) -> str:
    kind = match.lastgroup or ""
    return _REPLACEMENTS.get(kind, _secret)(match)


def _secret(_: re.Match[str]) -> str:
    return SECRET


def _named(match: re.Match[str]) -> str:
    return match[0] if _PROSE.fullmatch(match[0]) else match["named"] + _as_quoted(match["value"])


def _line(match: re.Match[str]) -> str:
    comma = match[0][: len(match[0]) - len(match[0].lstrip(", "))]
    return comma + LINE


def _path(match: re.Match[str]) -> str:
    return PATH + _trailing(match[0])


_REPLACEMENTS: dict[str, Callable[[re.Match[str]], str]] = {
    "marker": lambda match: match[0],
    "value": _named,
    "keyed": lambda match: match["key"] + _as_quoted(match["keyed"]),
    "credential": lambda match: match["bearer"] + SECRET,
    "quoted": lambda match: match["quote"] + PATH,
    "numbered": lambda match: match["numbered"],
    "line": _line,
    "url": lambda match: _url(match[0]),
    "path": _path,
    "relative": _path,
}
"""By the group that ends a match; all others are secrets."""


def _as_quoted(value: str) -> str:
    """Keep a value's quotes, so that what is left can be read."""
    quote = value[0] if value[0] in "\"'" else ""
    return quote + SECRET + (quote if len(value) > 1 and value.endswith(quote or "\0") else "")


def _trailing(found: str) -> str:
    """Return the punctuation after a path: it belongs to the sentence."""
    return found[len(found.rstrip(_TRAILING)) :]


def _url(found: str) -> str:
    """Drop who logs in and the secrets of the query; a file's URL is a path."""
    tail = _trailing(found)
    match = _URL.fullmatch(found.removesuffix(tail) if tail else found)
    assert match is not None  # the expression that found it is narrower
    scheme, authority, path, query, fragment = match.groups(default="")
    if scheme.removesuffix("://").rpartition("+")[0].lower() in _LOCAL_SCHEMES or (
        scheme.removesuffix("://").lower() in _LOCAL_SCHEMES
    ):
        return PATH + tail
    user, at, host = authority.rpartition("@")
    return "".join(
        (
            scheme,
            SECRET + at if user or at else "",
            host,
            path,
            _query(query),
            _query(fragment),
            tail,
        )
    )


def _query(query: str) -> str:
    """Return a query or a fragment with its secrets replaced."""
    if not query:
        return ""
    parts = []
    for part in query[1:].split("&"):
        name, equals, _ = part.partition("=")
        parts.append(name + equals + SECRET if equals and _QUERY_SECRET.match(name) else part)
    return query[0] + "&".join(parts)
