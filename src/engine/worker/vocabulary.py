"""What each token id stands for in bytes.

Text is defined as the UTF-8 decoding of the bytes of the tokens. That makes it
a function of the ids alone, lets a stream be decoded in constant time per
token, and gives the ``bytes`` of OpenAI's log probabilities.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Vocabulary"]


class Vocabulary:
    """The bytes of every token. Immutable; safe from any thread.

    Byte-level BPE and SentencePiece-style tokenizers are read exactly. For any
    other decoder a token's bytes are those of its own decoding.
    """

    def __init__(self, tokenizer: Any, eos_token_ids: Iterable[int]) -> None:  # noqa: ANN401
        """Read the table from a tokenizer of ``transformers`` (or mlx-lm's wrapper of one)."""
        self.eos_token_ids = frozenset(eos_token_ids)
        pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        added = {
            token_id: (b"" if token.special else token.content.encode())
            for token_id, token in tokenizer.added_tokens_decoder.items()
        }
        kind, self.strips_first_space = _decoder_kind(tokenizer)
        if kind == "bytes":
            table = [_byte_level(piece) for piece in pieces]
        elif kind == "sentencepiece":
            table = [_sentencepiece(piece) for piece in pieces]
        else:
            table = [tokenizer.decode([token_id]).encode() for token_id in range(len(pieces))]
        for token_id, raw in added.items():
            if token_id < len(table):
                table[token_id] = raw
        self._table = table

    def __len__(self) -> int:
        """Return the number of ids that the tokenizer knows."""
        return len(self._table)

    def raw(self, token: int) -> bytes:
        """Return a token's bytes: empty for special tokens and for ids that pad the model."""
        return self._table[token] if token < len(self._table) else b""


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


def _sentencepiece(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):  # noqa: PLR2004
        return bytes([int(piece[3:5], 16)])
    return piece.replace("\u2581", " ").encode()


def _byte_characters() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 stands for itself, the rest is shifted to U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    table |= {chr(0x100 + index): byte for index, byte in enumerate(others)}
    return table


_BYTE_OF = _byte_characters()
