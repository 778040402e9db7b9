"""A .gguf file becomes a model directory that computes the same, or is refused by name."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load

from mlx_pharos.engine.models.gguf import convert, convert_into
from mlx_pharos.engine.models.gguf_header import check_supported, read_header
from mlx_pharos.engine.models.gguf_tokenizer import end_tokens
from mlx_pharos.engine.models.store import Store
from mlx_pharos.resilience.errors import ModelError
from support import tiny_model
from support.gguf_writer import tiny_metadata, write_gguf, write_tiny_gguf

if TYPE_CHECKING:
    from pathlib import Path

PROMPT = list(range(40, 120))


def _logits(directory: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    model, _ = load(str(directory))[:2]
    model.set_dtype(mx.float32)
    return np.array(model(mx.array([PROMPT]))[0])


def _reference(directory: Path, weights: dict[str, Any], *, tied: bool) -> Path:
    """Write a model directory with these weights, in the order of rows that needs no conversion."""
    tiny_model.write_tiny_model(directory, tied=tied)
    tiny_model.write_safetensors(directory / "model.safetensors", weights)
    return directory


@pytest.mark.parametrize(
    ("matrices", "embedding", "tied"),
    [
        ("F32", "F32", False),
        ("F16", "F16", True),
        ("Q4_0", "Q8_0", False),
        ("Q4_1", "Q8_0", True),
        ("Q8_0", "Q8_0", False),
        ("Q4_1", "F16", False),
    ],
)
def test_logits_are_those_of_the_source(
    tmp_path: Path, matrices: str, embedding: str, tied: bool
) -> None:
    """A converted model computes what its weights compute, whatever types the file mixes."""
    weights = write_tiny_gguf(
        tmp_path / "m.gguf", matrices=matrices, embedding=embedding, tied=tied
    )
    converted = tmp_path / "converted"
    converted.mkdir()
    convert_into(tmp_path / "m.gguf", converted)

    expected = _logits(_reference(tmp_path / "reference", weights, tied=tied))
    actual = _logits(converted)

    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-2 if "Q" in matrices else 1e-3)
    assert (actual.argmax(-1) == expected.argmax(-1)).mean() > 0.97


def test_each_tensor_keeps_its_own_bits(tmp_path: Path) -> None:
    """The configuration says 4 bits, and 8 for the embedding, as the file has it."""
    write_tiny_gguf(tmp_path / "m.gguf", matrices="Q4_1", embedding="Q8_0", tied=True)
    convert_into(tmp_path / "m.gguf", tmp_path)

    config = json.loads((tmp_path / "config.json").read_text())

    assert {
        "group_size": 32,
        "bits": 4,
        "model.embed_tokens": {"group_size": 32, "bits": 8},
    } == config["quantization"]
    assert config["tie_word_embeddings"]
    assert config["rope_traditional"]
    assert config["max_position_embeddings"] == 8192


def test_tokenizer_and_template_come_with_the_file(tmp_path: Path) -> None:
    """Text becomes the same ids as with the model's own tokenizer, and digits stand alone."""
    metadata = {
        "tokenizer.ggml.tokens": [
            *tiny_model.byte_alphabet(),
            *tiny_model.SPECIAL_TOKENS,
            "he",
            "12",
            "\u0120t",
        ],
        "tokenizer.ggml.token_type": [1] * 256 + [3] * 4 + [1] * 3,
        "tokenizer.ggml.merges": ["h e", "1 2", "\u0120 t"],
        "tokenizer.ggml.eot_token_id": 256,
    }
    write_tiny_gguf(tmp_path / "m.gguf", metadata=metadata)
    convert_into(tmp_path / "m.gguf", tmp_path)
    _, tokenizer = load(str(tmp_path), lazy=True)[:2]

    assert [260, ord("l"), ord("l"), ord("o"), 262, ord("o")] == tokenizer.encode("hello to")
    assert [ord("1"), ord("2")] == tokenizer.encode("12")
    text = "caf\u00e9 \U0001f600 <|im_end|> 3.14\n"
    assert text == tokenizer.decode(tokenizer.encode(text))
    assert {tiny_model.EOS, 256} == tokenizer.eos_token_ids
    assert "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n" == (
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
        )
    )
    assert "BPEStreamingDetokenizer" == type(tokenizer.detokenizer).__name__


def test_sentencepiece_vocabulary_splits_as_sentencepiece_does(tmp_path: Path) -> None:
    """A vocabulary of scores gives the pieces that the sentencepiece library gives."""
    import sentencepiece

    corpus = tmp_path / "corpus.txt"
    words = ["the cat sat on the mat", "a cathedral matters", "they think that this is it"]
    corpus.write_text("\n".join(f"{word} {index}" for index in range(300) for word in words))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(tmp_path / "spm"),
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    spm = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    size = spm.vocab_size()
    kinds = [
        2 if spm.is_unknown(i) else 3 if spm.is_control(i) else 6 if spm.is_byte(i) else 1
        for i in range(size)
    ]
    weights = np.zeros((size, tiny_model.WIDTH), np.float32)
    metadata = tiny_metadata() | {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [spm.id_to_piece(i) for i in range(size)],
        "tokenizer.ggml.scores": [float(spm.get_score(i)) for i in range(size)],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.unknown_token_id": spm.unk_id(),
        "tokenizer.ggml.bos_token_id": spm.bos_id(),
        "tokenizer.ggml.eos_token_id": spm.eos_id(),
        "tokenizer.ggml.add_bos_token": True,
    }
    for absent in (
        "tokenizer.ggml.merges",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.padding_token_id",
    ):
        del metadata[absent]
    write_gguf(tmp_path / "m.gguf", metadata, {"token_embd.weight": (weights, "F16")})
    convert_into(tmp_path / "m.gguf", tmp_path)
    from mlx_lm.utils import load_tokenizer

    tokenizer = load_tokenizer(tmp_path)

    for text in (
        "the cathedral thinks",
        "  two spaces, and caf\u00e9 \U0001f600",
        "this is that\nmat 42",
        "x",
    ):
        assert [spm.bos_id(), *spm.encode(text)] == tokenizer.encode(text), text
        assert text == tokenizer.decode(spm.encode(text))
    assert "SPMStreamingDetokenizer" == type(tokenizer.detokenizer).__name__


def test_rotary_factors_of_llama_3_become_their_formula(tmp_path: Path) -> None:
    """The tensor of factors in the file is recognised, and a foreign one refused."""
    dims, theta, factor = 64, 500000.0, 8.0
    factors = []
    for index in range(dims // 2):
        wavelength = 2 * math.pi * theta ** (2 * index / dims)
        smooth = min(max((8192 / wavelength - 1) / 3, 0), 1)
        factors.append(1 / ((1 - smooth) / factor + smooth))
    metadata = tiny_metadata() | {
        "llama.attention.key_length": dims,
        "llama.attention.value_length": dims,
        "llama.rope.dimension_count": dims,
        "llama.rope.freq_base": theta,
    }
    embedding = np.zeros((260, tiny_model.WIDTH), np.float32)
    tensors: dict[str, Any] = {
        "token_embd.weight": (embedding, "F16"),
        "rope_freqs.weight": (np.array(factors, np.float32), "F32"),
    }
    write_gguf(tmp_path / "m.gguf", metadata, tensors)
    convert_into(tmp_path / "m.gguf", tmp_path)

    scaling = json.loads((tmp_path / "config.json").read_text())["rope_scaling"]

    assert "llama3" == scaling["rope_type"]
    assert 8.0 == scaling["factor"]
    factors[10] = 3.0
    tensors["rope_freqs.weight"] = (np.array(factors, np.float32), "F32")
    write_gguf(tmp_path / "m.gguf", metadata, tensors)
    with pytest.raises(ModelError, match="rotary factors"):
        convert_into(tmp_path / "m.gguf", tmp_path)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"general.architecture": "qwen2"}, "'qwen2'.*llama family"),
        ({"llama.expert_count": 8}, "mixture of 8 experts"),
        ({"tokenizer.ggml.pre": "deepseek-coder"}, "'deepseek-coder'.*smollm"),
        ({"tokenizer.ggml.model": "bert"}, "'bert'.*'gpt2'"),
        ({"tokenizer.ggml.tokens": None}, "no vocabulary"),
        ({"tokenizer.ggml.merges": None}, "no merges"),
        ({"llama.context_length": None}, "lacks llama.context_length"),
        ({"llama.rope.dimension_count": 8}, "rotates 8 of 16"),
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}, "'longrope'"),
    ],
)
def test_what_is_not_supported_is_named(
    tmp_path: Path, metadata: dict[str, Any], said: str
) -> None:
    """A file that cannot be converted is refused with the reason, and what is supported."""
    write_tiny_gguf(tmp_path / "m.gguf", metadata=metadata)

    with pytest.raises(ModelError, match=said):
        convert_into(tmp_path / "m.gguf", tmp_path)


def test_unsupported_quantization_is_named(tmp_path: Path) -> None:
    """The type's name and the supported ones are in the message, before anything is read."""
    tensors: dict[str, Any] = {"token_embd.weight": (np.zeros((256, 64), np.float32), 14)}
    path = write_gguf(tmp_path / "m.gguf", tiny_metadata(), tensors)

    with pytest.raises(ModelError, match=r"Q6_K.*Supported are F16, F32, Q4_0, Q4_1, Q8_0"):
        check_supported(path, read_header(path))


def test_cut_and_foreign_files_are_damaged(tmp_path: Path) -> None:
    """A file cut anywhere, or of another kind, is refused and never crashes the reader."""
    write_tiny_gguf(tmp_path / "m.gguf")
    whole = (tmp_path / "m.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in (0, 3, 4, 12, 40, 1000, len(whole) // 2, len(whole) - 200):
        cut.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=r"damaged|no GGUF|cannot be read"):
            read_header(cut)
    cut.write_bytes(b"GGUF\3\0\0\0" + b"\xff" * 500)
    with pytest.raises(ModelError, match="damaged"):
        read_header(cut)


def test_conversion_is_kept_until_the_file_changes(tmp_path: Path) -> None:
    """A second start finds the conversion without reading the file; a changed file is new."""
    path = tmp_path / "m.gguf"
    store = Store(tmp_path / "cache")
    write_tiny_gguf(path)
    assert store.find_converted(path) is None

    first = convert(path, store)

    assert first == store.find_converted(path) == convert(path, store)
    write_tiny_gguf(path, matrices="Q8_0")
    assert store.find_converted(path) is None
    assert first != convert(path, store)


def test_well_known_end_tokens_end_an_answer() -> None:
    """Control tokens such as <|eot_id|> end an answer although the metadata names another."""
    metadata = {
        "tokenizer.ggml.tokens": ["a", "<|eot_id|>", "<|im_end|>", "</s>"],
        "tokenizer.ggml.token_type": [1, 3, 1, 3],
        "tokenizer.ggml.eos_token_id": 3,
    }

    assert [3, 1] == end_tokens(metadata)
