"""What each token id stands for in bytes.

Text is defined as the UTF-8 decoding of the bytes of the tokens. That makes it
a function of the ids alone, lets a stream be decoded in constant time per
token, and gives the ``bytes`` of OpenAI's log probabilities.
"""

from __future__ import annotations

import codecs
import json
from typing import Any, Protocol

__all__ = ["ByteDecoder", "ContextDecoder", "TokenDecoder", "Vocabulary"]

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")

_LONGEST_CHARACTER = 8
"""Tokens that can make up one character; more are no text, and are not waited for."""


class Vocabulary:
    """The bytes of every token. Immutable; safe from any thread.

    Byte-level BPE and SentencePiece-style tokenizers are read exactly. Any other
    decoder may look at neighbours, so its text comes from the tokenizer itself,
    and a token's bytes are those of its decoding alone.
    """

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401
        """Read the table from a tokenizer of ``transformers`` (or mlx-lm's wrapper of one)."""
        self._tokenizer = tokenizer
        kind, self.strips_first_space = _decoder_kind(tokenizer)
        self._in_context = kind == "other"
        size = 1 + max(tokenizer.get_vocab().values(), default=-1)
        pieces = tokenizer.convert_ids_to_tokens(list(range(size)))
        read = _READERS.get(kind)
        # Ids can have gaps: such a piece is None.
        self._table = [
            (read(piece) if read else tokenizer.decode([token]).encode()) if piece else b""
            for token, piece in enumerate(pieces)
        ]
        for token, added in tokenizer.added_tokens_decoder.items():
            self._table[token] = b"" if added.special else added.content.encode()

    def __len__(self) -> int:
        """Return one more than the highest id that the tokenizer knows."""
        return len(self._table)

    def raw(self, token: int) -> bytes:
        """Return a token's bytes: empty for special tokens and for ids that pad the model."""
        return self._table[token] if token < len(self._table) else b""

    def decoder(self) -> TokenDecoder:
        """Return a decoder for one sequence, for use by one thread."""
        return ContextDecoder(self._tokenizer) if self._in_context else ByteDecoder(self)


class TokenDecoder(Protocol):
    """Turns the tokens of one sequence into text as they come."""

    def add(self, token: int) -> str:
        """Return the text that is certain now."""

    def finish(self) -> str:
        """Return the rest; a character that was cut becomes U+FFFD."""


class ByteDecoder:
    """Decodes the bytes of tokens as UTF-8."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._utf8 = _Utf8Decoder("replace")

    def add(self, token: int) -> str:
        """Return the text that is certain now."""
        return self._utf8.decode(self._vocabulary.raw(token))

    def finish(self) -> str:
        """Return the rest; a character that was cut becomes U+FFFD."""
        return self._utf8.decode(b"", final=True)


class ContextDecoder:
    """Lets the tokenizer decode tokens behind those sent last, and takes the difference."""

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401
        self._tokenizer = tokenizer
        self._context: list[int] = []
        """Tokens whose text was sent last; they end where a character ends."""
        self._pending: list[int] = []

    def add(self, token: int) -> str:
        """Return the text that is certain now."""
        self._pending.append(token)
        text = self._difference()
        if text.endswith("\ufffd") and len(self._pending) < _LONGEST_CHARACTER:
            return ""  # perhaps the beginning of a character
        if text:
            self._context, self._pending = self._pending, []
        return text

    def finish(self) -> str:
        """Return the rest; a character that was cut becomes U+FFFD."""
        return self._difference()

    def _difference(self) -> str:
        before = self._decode(self._context) if self._context else ""
        return self._decode(self._context + self._pending)[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


def _decoder_kind(tokenizer: Any) -> tuple[str, bool]:  # noqa: ANN401
    """Return how the tokenizer's decoder reads pieces, and whether it drops a first space."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.loads(backend.to_str()).get("decoder") if backend is not None else None
    if not decoder:
        return "other", False
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return "bytes", False
    if kinds == ["Metaspace"] and steps[0].get("replacement") == "\u2581":
        return "metaspace", steps[0].get("prepend_scheme", "always") != "never"
    if kinds[:3] == ["Replace", "ByteFallback", "Fuse"]:
        replaced = steps[0].get("pattern") == {"String": "\u2581"} and steps[0]["content"] == " "
        if replaced and kinds[3:] in ([], ["Strip"]):
            return "sentencepiece", kinds[3:] == ["Strip"]
    return "other", False


def _byte_level(piece: str) -> bytes:
    """Undo GPT-2's mapping of bytes to printable characters; other characters stay."""
    raw = bytearray()
    for character in piece:
        byte = _BYTE_OF.get(character)
        if byte is None:
            raw += character.encode()
        else:
            raw.append(byte)
    return bytes(raw)


def _metaspace(piece: str) -> bytes:
    return piece.replace("\u2581", " ").encode()


def _sentencepiece(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):  # noqa: PLR2004
        return bytes([int(piece[3:5], 16)])
    return _metaspace(piece)


def _byte_characters() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 stands for itself, the rest is shifted to U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    table |= {chr(0x100 + index): byte for index, byte in enumerate(others)}
    return table


_BYTE_OF = _byte_characters()
_READERS = {"bytes": _byte_level, "metaspace": _metaspace, "sentencepiece": _sentencepiece}
