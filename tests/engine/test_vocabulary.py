"""The bytes of tokens, against the tokenizers' own decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.utils import load_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from mlx_pharos.engine.worker.vocabulary import Vocabulary

if TYPE_CHECKING:
    from pathlib import Path

_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_WORDS = ["\u2581", "\u2581he", "llo", "\u2581w\u00f6rld", "!", "\u2581\u2581"]


def _sentencepiece(*, strip: bool) -> PreTrainedTokenizerFast:
    pieces = ["<unk>", "<s>", "</s>", *_BYTES, *_WORDS]
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if strip:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer = Tokenizer(
        models.BPE({piece: index for index, piece in enumerate(pieces)}, [], byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def _text(vocabulary: Vocabulary, tokens: list[int]) -> str:
    text = b"".join(vocabulary.raw(token) for token in tokens).decode("utf-8", "replace")
    return text.removeprefix(" ") if vocabulary.strips_first_space else text


@pytest.fixture(scope="module")
def byte_level(tiny_model: Path) -> Any:
    """A byte-level BPE tokenizer."""
    return load_tokenizer(tiny_model)


def test_byte_level_tokens_are_their_bytes(byte_level: Any) -> None:
    """Every text comes back from its ids, characters outside of the vocabulary included."""
    vocabulary = Vocabulary(byte_level)
    for text in ("plain text", "na\u00efve caf\u00e9", "\U0001f600 \u4f60\u597d", "tab\tline\n"):
        assert text == _text(vocabulary, byte_level.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("strip", [True, False])
@given(tokens=st.lists(st.integers(3, 3 + 256 + len(_WORDS) - 1), max_size=12))
def test_sentencepiece_tokens_are_their_bytes(strip: bool, tokens: list[int]) -> None:
    """Byte fallback and word marks decode as the tokenizer decodes them, where it is text."""
    tokenizer = _sentencepiece(strip=strip)
    expected = tokenizer.decode(tokens)
    vocabulary = Vocabulary(tokenizer)
    assert strip == vocabulary.strips_first_space
    if "\ufffd" not in expected:
        assert expected == _text(vocabulary, tokens)


def test_special_tokens_have_no_text(byte_level: Any) -> None:
    """An end-of-turn mark is not part of an answer."""
    vocabulary = Vocabulary(byte_level)
    assert [b""] * len(byte_level.eos_token_ids) == [
        vocabulary.raw(token) for token in byte_level.eos_token_ids
    ]


def test_ids_that_only_pad_the_model_have_no_text(byte_level: Any) -> None:
    """Logits can be wider than the vocabulary."""
    assert b"" == Vocabulary(byte_level).raw(10_000_000)


def _streamed(tokenizer: Any, tokens: list[int]) -> str:
    decoder = Vocabulary(tokenizer).decoder()
    return "".join([decoder.add(token) for token in tokens]) + decoder.finish()


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.Metaspace(),
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
        decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback()]),
        decoders.WordPiece(prefix="llo"),
    ],
)
@given(tokens=st.lists(st.integers(3, 3 + 256 + len(_WORDS) - 1), min_size=1, max_size=12))
def test_any_decoder_streams_what_it_decodes_whole(decoder: Any, tokens: list[int]) -> None:
    """Decoders that look at neighbours get them; only a dropped first space may differ."""
    tokenizer = _sentencepiece(strip=False)
    tokenizer.backend_tokenizer.decoder = decoder
    expected = str(tokenizer.decode(tokens))
    if "\ufffd" not in expected:
        assert expected.strip(" ") == _streamed(tokenizer, tokens).strip(" ")


def test_long_texts_stream_in_context() -> None:
    """The context that is kept is enough, however long the text is."""
    tokenizer = _sentencepiece(strip=False)
    tokenizer.backend_tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback()]
    )
    ids: dict[str, int] = tokenizer.get_vocab()
    euro = [ids[f"<0x{byte:02X}>"] for byte in "\u20ac".encode()]
    tokens = [ids["\u2581he"], *euro] * 100
    assert tokenizer.decode(tokens) == _streamed(tokenizer, tokens)


def test_gaps_between_ids_have_no_text() -> None:
    """A vocabulary may leave ids out."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 5, "<unk>": 1}, unk_token="<unk>"))
    vocabulary = Vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert [b"a", b"", b"b"] == [vocabulary.raw(token) for token in (0, 3, 5)]
