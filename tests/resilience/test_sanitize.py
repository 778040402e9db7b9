"""Sanitizing: what must go goes, prose stays, and the time is linear."""

from __future__ import annotations

import string
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_pharos.resilience.sanitize import sanitize_error_message

_GONE = [
    ("[Errno 2] No such file or directory: '/home/john smith/m.gguf'", ["john", "m.gguf"]),
    ('File "/usr/lib/python3.11/json/decoder.py", line 355, in decode', ["usr", "355"]),
    ("cannot open /Volumes/My Disk/models/a.safetensors now", ["Volumes", "Disk", "a.safe"]),
    ("~/Library/Application Support/pharos is full", ["Library", "Support/"]),
    (r"C:\Users\Ann B\model.gguf is damaged", ["Users", "Ann", r"B\model"]),
    ("in C:/Program Files/x/y", ["Program", "Files"]),
    (r"\\server\share\private.txt", ["server", "share", "private"]),
    (repr(r"C:\Users\ann\x"), ["ann"]),
    ("$HOME/.cache/x and ${XDG}/y and %USERPROFILE%\\z", [".cache", "/y", "\\z"]),
    ("file:///srv/models/x", ["srv"]),
    ("see ./build/out.log or ../../etc/passwd", ["build", "etc"]),
    ("org/private/model.safetensors:3 is cut", ["private", ":3"]),
    ("scheduler.py:123: failed, lines 3-7", ["123", "3-7"]),
    ("Expecting value: line 17 column 5", ["17"]),
    ("https://ann:pw123@host.example/simple?token=t0k3n&x=1", ["ann", "pw123", "t0k3n"]),
    ("https://host.example/x#access_token=zz99", ["zz99"]),
    ("api_key: hunter2, password='a b c' PHAROS_API_KEY=xyz", ["hunter2", "a b c", "xyz"]),
    ('{"api_key": "open-sesame", "HF_TOKEN": "abc"}', ["sesame", "abc"]),
    ("key=sesame&secret=open", ["sesame", "open"]),
    ("Authorization: Bearer abc.def", ["abc", "def"]),
    ("sent bearer AbCdEf123456 to it", ["AbCdEf"]),
    ("Authorization: Basic dXNlcjpwdw==", ["dXNl"]),
    ("sk-proj-abcDEF123456 and hf_AbCdEfGh123456", ["abcDEF", "AbCd"]),
    ("ghp_abcdef0123456789 github_pat_11ABC_def", ["abcdef", "11ABC"]),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", ["hbGci", "c2ln"]),
    ("-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY----- x", ["MIIE"]),
    (
        "run --api-key=abcdef --token=t0k -key=wxyz '--password=hunter2'",
        ["abcd", "t0k", "wx", "hunt"],
    ),
    ("mykey=abc PGPASSWORD=hunter2 AccountKey=zz== PHAROS__TOKEN=x7", ["abc", "hunt", "zz", "x7"]),
    ("_authToken=abc refreshtoken=xyz", ["abc", "xyz"]),
    ("Bearer: abc123def, bearer=abcdef1, Basic: dXNlcjpwdw==", ["abc", "dXNl"]),
    ("Bearer abcdefghij, BEARER ABCDEFGHIJ, bearer: abcdefghij", ["abcd", "ABCD"]),
    (f"sk-{string.ascii_lowercase} sk-proj-{string.ascii_lowercase}", ["abcd", "wxyz"]),
    (f"hf_{string.ascii_lowercase}abcdefgh", ["abcd", "wxyz"]),
    ("line: 12, line #13; line=14, line = 15 and Line#16", ["12", "13", "14", "15", "16"]),
    ("in lines 1 and 2, or lines 3, 4 to 5", ["1", "2", "3", "4", "5"]),
    ('<string>:12: in x, "<frozen runpy>:198:3"', ["12", "198", "3"]),
    ("/home/bob/my file.txt is cut; not /srv/a b.tar.json", ["bob", "my", "file", "srv", "json"]),
]

_PROSE = [
    "and/or 1/2 of 3 tokens/s, n/a, w/o, either/or, he/she, 2026/11/24, +/- 3",
    "Pharos is ready: http://localhost:8080/v1 serves 'starter'.",
    "https://example.org/docs?format=json#top has more.",
    "max_tokens=5 prompt_tokens: 7 tokenizer: fast monkey=banana keyboard: us",
    "content type text/event-stream, org/name, Qwen2.5-7B/4bit, mlx-lm 0.32.2",
    "Send a bearer token with basic understanding. Unexpected token: foo",
    "[malloc] Unable to allocate 123 bytes at 10:30:59.",
    "It's the client's turn; 'quoted' and \"double\" stay. </think> <|im_end|>",
    "sk-learn, hf_transfer and npm_config are names; the pipeline 12 is not a line",
    "model.safetensors is cut after 3 of 4 tensors (75 %).",
    "the key = value form, key: value; monkey=5 turkey=3 hockey=2 keys=5",
    "a bearer of bad news; Bearer authentication is required; BEARER AUTHORIZATION",
    "bearer: authentication failed; unsupported scheme bearer: use basic principles",
    "Bearer credentials, bearer certificates, hf_hub_download, npm_config_registry",
    "2 lines and 3 words, deadline=5, headline #1, max_lines=5; line up 12",
    "-- --help --model starter --token is missing; -1 ... a--b <br> <|im_end|>:1",
    "",
]


@pytest.mark.parametrize(("text", "gone"), _GONE)
def test_secrets_paths_and_lines_go(text: str, gone: list[str]) -> None:
    """What a reader must not learn is not in what is left."""
    left = sanitize_error_message(text)
    assert [] == [part for part in gone if part in left], left


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/srv/models lacks config.json", "[path] lacks config.json"),
        ("copy /srv/a.txt b.txt", "copy [path] b.txt"),
        ("/srv/a: file.txt is cut", "[path]: file.txt is cut"),
        ("at line 12, 3 errors", "at [line], 3 errors"),
        ("--token=abc is a flag", "--token=[secret] is a flag"),
    ],
)
def test_what_stands_beside_stays(text: str, expected: str) -> None:
    """The words after a path, a line or a secret are no part of it."""
    assert expected == sanitize_error_message(text)


@pytest.mark.parametrize("text", _PROSE)
def test_prose_stays(text: str) -> None:
    """A text without secrets comes back as it was."""
    assert text == sanitize_error_message(text)


_WORD = st.text(string.ascii_letters, min_size=1, max_size=12)
_UNIQUE = st.text(string.ascii_letters + string.digits, min_size=12, max_size=40).map(
    lambda text: f"Zq9{text}"
)
_PLANTS = [
    "/home/{}/model",
    "'/srv/a b/{}.gguf'",
    "~/{}",
    "C:\\Users\\{}\\x",
    "\\\\host\\{}\\x",
    "file:///opt/{}",
    "./{}/x",
    "$HOME/{}",
    "api_key={}",
    "api_key: {}",
    "HF_TOKEN={}",
    "X-Api-Key: {}",
    "password='{}'",
    '"token": "{}"',
    "key={}",
    "mykey={}",
    "--api-key={}",
    "Bearer: {}",
    "sk-{}",
    "hf_{}",
    "ghp_{}",
    "Bearer {}",
    "Authorization: Bearer {}",
    "https://user:{}@host.example/x",
    "https://{}@host.example/x",
    "https://host.example/x?sig={}",
    "eyJ{0}.eyJ{0}.{0}",
]


@given(
    before=st.lists(_WORD, max_size=5),
    plant=st.sampled_from(_PLANTS),
    secret=_UNIQUE,
    after=st.lists(_WORD, max_size=5),
    border=st.sampled_from([" ", "\n", ", ", ": ", " (", "; "]),
)
@settings(max_examples=300)
def test_what_is_planted_is_never_left(
    before: list[str], plant: str, secret: str, after: list[str], border: str
) -> None:
    """Wherever a secret stands in a text, and whatever stands around it, it goes."""
    text = " ".join(before) + border + plant.format(secret) + border + " ".join(after)
    assert secret not in sanitize_error_message(text)


@given(
    words=st.lists(
        st.one_of(
            _WORD.map(str.lower),
            st.integers(0, 99_999).map(str),
            st.sampled_from(["and/or", "1/2", "tokens/s", "http://localhost:8080/v1", "n/a"]),
        ).filter(lambda word: not word.startswith(("line", "bearer", "basic"))),
        max_size=30,
    )
)
def test_words_and_numbers_stay(words: list[str]) -> None:
    """Ordinary prose is left alone."""
    text = " ".join(words)
    assert text == sanitize_error_message(text)


@given(st.text(max_size=300))
@example("/ ~ \\ : = @ ' \" [path] [secret")
def test_any_text_is_taken_and_twice_is_once(text: str) -> None:
    """Nothing raises, and what is sanitized stays as it is."""
    once = sanitize_error_message(text)
    assert once == sanitize_error_message(once)


_HOSTILE = [
    "/", "a/", "/a ", "/a b c d ", "key=", "key='", 'key="\\a', "a_", "a-", "a.", "a.a/", "sk-",
    "sk-a-", "eyJaaaaaa.", "http://", "a+", "@:", "'/", '"\\', "\\\\a", "~a", "$a", "%a", "bearer ",
    "bearer a", "-----BEGIN A-----", "line 1", "a.py", "A", " ", "[", "[path", "a b/c ",
    "-", "'-", "a__", "akey", "bearer aaaaaaaaaa", "lines 1, ", "<a ", "/a b.c ", "sk-aaaaaaaaaa-",
]  # fmt: skip


@pytest.mark.parametrize("unit", _HOSTILE)
def test_time_grows_with_the_length_alone(unit: str) -> None:
    """Eight times the text takes about eight times as long; the square of it would take 64."""

    def seconds(size: int) -> float:
        text = (unit * (size // len(unit) + 1))[:size]
        best = 10.0
        for _ in range(3):
            begin = time.process_time()
            sanitize_error_message(text)
            best = min(best, time.process_time() - begin)
        return best

    short, long = seconds(10_000), seconds(80_000)
    assert long < 30 * max(short, 0.003), (short, long)


@given(st.lists(st.sampled_from(_HOSTILE), min_size=1, max_size=6))
@settings(max_examples=30)
def test_hostile_mixtures_are_linear_too(units: list[str]) -> None:
    """40,000 characters of any mixture take well under the seconds that a square would."""
    unit = "".join(units)
    text = (unit * (40_000 // len(unit) + 1))[:40_000]
    begin = time.process_time()
    sanitize_error_message(text)
    assert time.process_time() - begin < 3
