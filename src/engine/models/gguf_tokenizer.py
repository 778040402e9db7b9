"""Turn the vocabulary inside a GGUF file into ``tokenizer.json`` and its companions.

Two kinds of tokenizer are written into files of the llama family:

* ``gpt2``: byte-level BPE with a list of merges. How text is split before
  merging is not in the file; ``tokenizer.ggml.pre`` names the rule.
* ``llama``: SentencePiece BPE. Merges are not listed: two neighbours merge if
  the result is in the vocabulary, the best score first. The list of merges
  that does the same is all pairs whose concatenation is a token, ordered by the
  score of that token.

Everything is plain JSON in the format of the ``tokenizers`` library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...resilience.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["end_tokens", "tokenizer_files"]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
"""``tokenizer.ggml.token_type``: 5 is unused and 6 is a byte; both stay in the vocabulary as is."""

_ENDS = frozenset(
    {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>"}
)
"""Control tokens that end an answer whatever the metadata says."""

_SPACE = "\u2581"
"""SentencePiece's stand-in for a space."""

_BYTE_LEVEL: dict[str, Any] = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
_DIGITS: dict[str, Any] = {"type": "Digits", "individual_digits": True}


_LONGEST_TOKEN = 4096
"""Characters. All ways to cut a token in two are looked at, so a long one would never end."""


def _split(pattern: str) -> list[dict[str, Any]]:
    return [
        {
            "type": "Split",
            "pattern": {"Regex": pattern},
            "behavior": "Isolated",
            "invert": False,
        },
        {**_BYTE_LEVEL, "use_regex": False},
    ]


_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_BYTE_LEVEL],
    "smollm": [_DIGITS, _BYTE_LEVEL],
    "llama-bpe": _split(_LLAMA3),
    "llama3": _split(_LLAMA3),
    "tekken": _split(_TEKKEN),
}
"""How text is split before merging, by the name in ``tokenizer.ggml.pre``."""

_WHOLE_WORDS = frozenset({"llama-bpe", "llama3", "tekken"})
"""Vocabularies whose tokens win over merges where a whole piece is a token."""


def tokenizer_files(metadata: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return ``tokenizer.json`` and ``tokenizer_config.json`` for a file's metadata.

    Raises:
        ModelError: There is no vocabulary, or its kind is not supported.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise ModelError("The .gguf file holds no vocabulary, so it cannot be served.")
    if any(len(text) > _LONGEST_TOKEN for text in tokens):
        raise ModelError("The .gguf file is damaged: a token of it is longer than any word.")
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        content = _byte_level(metadata, tokens)
    elif kind == "llama":
        content = _sentencepiece(metadata, tokens)
    else:
        raise ModelError(
            f"The .gguf file has a tokenizer of the kind {kind!r}; supported are 'gpt2' (byte-level "
            "BPE) and 'llama' (SentencePiece)."
        )
    types = metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    content |= {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokens, types),
        "post_processor": _begin_and_end(metadata, tokens, kind),
    }
    return {"tokenizer.json": content, "tokenizer_config.json": _config(metadata, tokens)}


def end_tokens(metadata: dict[str, Any]) -> list[int]:
    """Return the ids that end an answer: those of the metadata first, then the well-known ones."""
    named = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    types = metadata.get("tokenizer.ggml.token_type") or []
    known = [
        token
        for token, (text, kind) in enumerate(zip(tokens, types, strict=False))
        if kind == _CONTROL and text in _ENDS
    ]
    return list(dict.fromkeys(int(token) for token in (*named, *known) if token is not None))


def _byte_level(metadata: dict[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    name = metadata.get("tokenizer.ggml.pre")
    steps = _PRE_TOKENIZERS.get(str(name))
    if steps is None:
        raise ModelError(
            f"The .gguf file splits text by the rule {name!r}; supported are "
            f"{', '.join(sorted(_PRE_TOKENIZERS))}."
        )
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise ModelError("The .gguf file holds no merges for its vocabulary, so it is incomplete.")
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": name in _WHOLE_WORDS,
            "vocab": {text: token for token, text in enumerate(tokens)},
            # A merge is written "left right"; a token holds no plain space.
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }


def _sentencepiece(metadata: dict[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise ModelError("The .gguf file holds no scores for its vocabulary, so it is incomplete.")
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    normalizers = [{"type": "Prepend", "prepend": _SPACE}, spaces] if prefix else [spaces]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": tokens[unknown],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {text: token for token, text in enumerate(tokens)},
            "merges": _merges_of(tokens, scores, metadata.get("tokenizer.ggml.token_type")),
        },
    }


def _merges_of(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int] | None
) -> list[list[str]]:
    """Return the merges that a SentencePiece vocabulary implies, the first to apply first."""
    ids = {
        text: token
        for token, text in enumerate(tokens)
        if types is None or types[token] in (_NORMAL, _USER_DEFINED)
    }
    ranked: list[tuple[float, int, int, str, str]] = []
    for text, token in ids.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in ids and right in ids:
                ranked.append((-scores[token], ids[left], ids[right], left, right))
    ranked.sort()
    return [[left, right] for *_, left, right in ranked]


def _added_tokens(tokens: Sequence[str], types: Sequence[int]) -> list[dict[str, Any]]:
    """Return the tokens that are found in text before it is split."""
    return [
        {
            "id": token,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind in (_CONTROL, _UNKNOWN),
        }
        for token, (text, kind) in enumerate(zip(tokens, types, strict=False))
        if kind in (_CONTROL, _UNKNOWN, _USER_DEFINED)
    ]


def _begin_and_end(
    metadata: dict[str, Any], tokens: Sequence[str], kind: str
) -> dict[str, Any] | None:
    """Return the step that adds begin and end tokens to raw text, where the file asks for it."""
    begins = metadata.get("tokenizer.ggml.pre") in ("llama-bpe", "llama3", "tekken")
    wanted = {
        "bos": metadata.get("tokenizer.ggml.add_bos_token", kind == "llama" or begins),
        "eos": metadata.get("tokenizer.ggml.add_eos_token", False),
    }
    single: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    special: dict[str, Any] = {}
    for name, is_wanted in wanted.items():
        token = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if not is_wanted or token is None:
            continue
        text = tokens[token]
        special[text] = {"id": text, "ids": [token], "tokens": [text]}
        step = {"SpecialToken": {"id": text, "type_id": 0}}
        single.insert(0 if name == "bos" else len(single), step)
    if not special:
        return None
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": pair,
        "special_tokens": special,
    }


def _config(metadata: dict[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata.get("llama.context_length"),
    }
    for ours, theirs in (
        ("bos_token", "bos"),
        ("eos_token", "eos"),
        ("unk_token", "unknown"),
        ("pad_token", "padding"),
    ):
        token = metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        if isinstance(token, int) and 0 <= token < len(tokens):
            config[ours] = tokens[token]
    template = metadata.get("tokenizer.chat_template")
    if template:
        config["chat_template"] = template
    return config
