"""Text assembly: UTF-8 borders and stop strings."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, cast

from hypothesis import given
from hypothesis import strategies as st

from mlx_pharos.engine.worker.text import StopMatcher, TextAssembler
from mlx_pharos.engine.worker.vocabulary import ByteDecoder

if TYPE_CHECKING:
    from mlx_pharos.engine.worker.vocabulary import Vocabulary

_LETTERS = st.text(alphabet="ab\n", max_size=30)


def _cut(raw: bytes, borders: list[int]) -> list[bytes]:
    edges = [0, *sorted(border % (len(raw) + 1) for border in borders), len(raw)]
    return [raw[begin:end] for begin, end in itertools.pairwise(edges)]


class _Pieces:
    """A vocabulary whose tokens are the pieces of one text."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def raw(self, token: int) -> bytes:
        return self._pieces[token]


def _assembler(
    pieces: list[bytes], stops: tuple[str, ...] = (), *, strip_first_space: bool = False
) -> TextAssembler:
    decoder = ByteDecoder(cast("Vocabulary", _Pieces(pieces)))
    return TextAssembler(decoder, stops, strip_first_space=strip_first_space)


def _run(pieces: list[bytes], stops: tuple[str, ...] = ()) -> tuple[str, bool]:
    assembler = _assembler(pieces, stops)
    text = ""
    for token in range(len(pieces)):
        more, stopped = assembler.add(token)
        text += more
        if stopped:
            return text, True
    rest, stopped = assembler.finish()
    return text + rest, stopped


@given(
    _LETTERS,
    st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 60), max_size=8),
)
def test_text_ends_before_the_first_stop_string_however_it_is_cut(
    text: str, stops: list[str], borders: list[int]
) -> None:
    """Whatever the token borders, the client sees the text up to the stop string met first."""
    pieces = _cut(text.encode(), borders)
    seen, stopped = _run(pieces, tuple(stops))
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    assert bool(ends) == stopped
    if not ends:
        assert text == seen
        return
    # A stop string is met with the piece that completes the earliest one; within that
    # piece the one that begins first wins.
    known = 0
    for piece in pieces:
        known += len(piece)
        begins = [text[:known].find(stop) for stop in stops if stop in text[:known]]
        if begins:
            assert text[: min(begins)] == seen
            break


@given(st.binary(max_size=40), st.lists(st.integers(0, 40), max_size=8))
def test_text_is_the_decoding_of_all_bytes(raw: bytes, borders: list[int]) -> None:
    """Cutting characters, or sending bytes that are no text, changes nothing and never fails."""
    seen, stopped = _run(_cut(raw, borders))
    assert (raw.decode("utf-8", "replace"), False) == (seen, stopped)


def test_what_cannot_begin_a_stop_string_is_sent_at_once() -> None:
    """Only text that may belong to a stop string waits."""
    matcher = StopMatcher(("END",))
    assert ("hello ", False) == matcher.feed("hello E")
    assert ("E", False) == matcher.feed("EN")
    assert ("", True) == matcher.feed("D and more")


def test_first_space_is_dropped_only_where_the_tokenizer_does_so() -> None:
    """SentencePiece writes a space before the first word of a chat answer."""
    assert ("hi", False) == _assembler([b" hi"], strip_first_space=True).add(0)
    assert (" hi", False) == _assembler([b" hi"]).add(0)
