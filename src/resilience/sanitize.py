"""Text that others wrote, without what must not be shown: paths, line numbers, keys, tokens.

For log lines, metrics and spans that carry the words of a library, the kernel
or an index. Messages to clients are never made from such text at all.

One pass over the text with one expression. Every repetition in it is bounded or
possessive, and begins at a border that occurs once per run of characters, so
the time grows with the length of the text alone, whatever the text is.

What it knows is a list, and lists have gaps. It takes a path that is relative
and looks like words for words (``models/private``), since ``and/or`` has the
same shape; a file's bare name stays; so does an opaque string that no name and
no prefix tells to be a secret, and what stands after a flag and a space
(``--token abc``), since ``--token is missing`` has the same shape.
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

_PARTS = "(?:[A-Za-z0-9]{1,40}[_.-]{1,3}){0,6}"
_NAME = rf"""
    {_PARTS}
    (?:api[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key|signing[_-]?key|encryption[_-]?key
    |(?:access|auth|id|refresh|session|bearer|hub|hf|csrf|sas)?[_-]?token|client[_-]?secret|secret
    |passwords?|passwd|passphrase|pwd|credentials?|x-amz-signature|signature|sig|cookie|set-cookie
    |(?:proxy-)?authorization|bearer)
"""
"""Names whose value is a secret, also after ``:``. ``max_tokens`` and ``tokenizer`` are none."""

_ENDING = rf"""
    {_PARTS}
    (?!(?:mon|don|tur|hoc|joc|lac|flun|whis|hic|mic|malar)key=)
    [A-Za-z0-9]{{0,40}}(?:key|token|secret|password)
"""
"""Names of one word that end as those of secrets do, before ``=`` alone: ``PGPASSWORD=``, ``mykey=``.
Of the words of English that end so, those that a line may hold are left out: a hidden value
costs its reader a word, and one that is shown costs a key."""

_VALUE = rf"""
    (?:"(?:[^"\\\n]|\\.){{0,4096}}+"?
    |'(?:[^'\\\n]|\\.){{0,4096}}+'?
    |(?!{_MARKERS})[^\s,;&'"()\[\]{{}}<>]++)
"""

_SOURCE = r"""(?:py|pyc|pyi|pyx|c|cc|cpp|cxx|h|hpp|m|mm|metal|cu|rs|go|js|ts|json|jsonl|toml|ya?ml
    |txt|jinja2?|safetensors|gguf|so|dylib|log|cfg|conf|ini|sh|md)"""

_NO_MODULE = "(?=[a-z_-]{0,200}[A-Z0-9]|(?:[a-z]{1,20}[_-]){0,3}[a-z]{20})"
"""What follows a prefix is no name of a module: ``hf_transfer``, ``sk-learn``."""
_LONG_WORD = r"""
    [a-z]{1,24}?(?:[st]ions?|ments?|ings?|ed|ly|it(?:y|ies)|ness|[ae]nces?|[ae]nts?|[ai]bles?|ates?
    |i?als?|[eo]rs?|isms?|ware|ics?|ous|ives?|ful|less|ships?|ures?)(?![a-z])
"""
"""How long words of prose end: ``bearer authentication``. Letters drawn by lot end so once in 100."""
_NUMBER = r"(?:\ ?[:=]\ ?|\ |(?=\#))\#?\d++"
"""Of a line, after the word: ``line 12``, ``line: 12``, ``line #12``."""

_SEGMENT = r"""[^\s/\\'"`<>|*?,;:()\[\]{}]"""
_REST = r"""[^\s'"`<>|*?,;()\[\]{}]"""
_SPACED = rf"""
    (?:[ ](?!(?-i:[a-z]++/[a-z]++|\d++/\d++)(?![\w/\\]))
       (?:{_SEGMENT}{{1,64}}[ ]){{0,2}}{_SEGMENT}{{1,64}}[/\\]{_REST}*+){{0,4}}
"""
"""A path goes on after a space where one of the next words has a slash: ``Application Support/x``;
two plain words with a slash between them are prose."""
_NO_SUFFIX = "".join(rf"(?<!\.\w{{{length}}})" for length in range(1, 12))
_SPACED_FILE = rf"""
    (?:(?<=\w){_NO_SUFFIX}[ ][\w-]{{1,64}}(?:\.[\w-]{{1,32}}){{0,3}}\.{_SOURCE}\b(?![/\\]))?
"""
"""One that ends without a suffix goes on in a word with one: ``/home/ann/my file.txt``."""

_PATTERN = re.compile(
    rf"""
    (?P<marker>{_MARKERS})
    |(?P<pem>-----BEGIN\ [A-Z ]{{1,40}}-----.*?(?:-----END\ [A-Z ]{{1,40}}-----|\Z))
    |(?P<url>(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{{0,30}}+://[^\s'"<>`]++)
    |(?P<quoted>(?P<quote>['"`])
        (?:[/~\\]|[A-Za-z]:[/\\]|\.{{1,2}}[/\\]|\$\{{?\w{{1,40}}\}}?[/\\]|%\w{{1,40}}%[/\\])
        (?=[^'"`\n]{{2}})[^'"`\n]{{1,4096}}+)
    |(?P<named>(?<![A-Za-z0-9_.-])["']?[_.-]*+(?:{_NAME})["']?\s{{0,4}}[=:]\s{{0,4}}+)
        (?P<scheme>(?:bearer|basic|digest|token)\s{{1,4}}+)?(?P<value>{_VALUE})
    |(?P<key>(?<![A-Za-z0-9_.-])[_.-]*+(?:{_ENDING})=)(?P<keyed>{_VALUE})
    |(?P<bearer>\b(?:
        (?:bearer|basic)[\s:=]{{1,4}}+
        (?-i:(?=[A-Za-z]{{0,200}}(?:\d|[._~+/=-][A-Za-z\d])|[a-z]{{1,200}}[A-Z]))
        |bearer[\s:=]{{1,4}}+(?=[a-z]{{10}})(?!{_LONG_WORD})))
        (?P<credential>[A-Za-z0-9._~+/=-]{{8,}}+)
    |(?P<known>(?<![A-Za-z0-9])(?:
        eyJ[\w-]{{5,}}+(?:\.[\w-]++){{1,4}}
        |(?:sk|pk|rk)[-_](?-i:{_NO_MODULE})[\w-]{{6,}}+
        |(?:hf|api_org|npm|glpat|pypi|xox[abeoprs]|ya29)[-_.](?-i:{_NO_MODULE})[\w.-]{{6,}}+
        |(?:gh[oprsu]|github_pat)_\w{{6,}}+
        |(?-i:A[KS]IA[A-Z0-9]{{12,}}+)
        |AIza[\w-]{{20,}}+))
    |(?P<line>,?\ ?\bline(?:{_NUMBER}(?:(?:-|\ to\ )\d++)?
        |s{_NUMBER}(?:(?:-|,\ ?|,?\ (?:to|and|or)\ )\d++)*+))
    |(?P<numbered>(?<![\w.-])[\w-]{{1,128}}(?:\.[\w-]{{1,64}}){{0,8}}\.{_SOURCE}
        |<[a-z][\w.\ -]{{0,63}}>)(?::\d++)++
    |(?P<path>(?:
        (?<![\w/\\<])/[\w.@%$~]
        |(?<=<)/[\w.@%$~+-]{{1,255}}+/
        |(?<![\w/\\~])~[\w.-]{{0,64}}[/\\]
        |(?<![A-Za-z0-9_])[A-Za-z]:[/\\]
        |(?<![\w\\])\\\\[\w.?$-]
        |(?<![\w./\\])\.{{1,2}}[/\\]
        |(?<![\w$])\$(?:\w{{1,64}}+|\{{\w{{1,64}}\}})[/\\]
        |%\w{{1,64}}%[/\\]
        )(?:{_REST}*+){_SPACED}{_SPACED_FILE})
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
_PROSE = re.compile(
    rf"(?:(?:token|signature):\s+[a-z]{{1,24}}|bearer:\s+(?:[a-z]{{1,9}}|{_LONG_WORD}))[.!?]?",
    re.VERBOSE | re.IGNORECASE,
)
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
