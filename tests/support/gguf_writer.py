"""Write small .gguf files: the tiny model in every tensor type that can be converted.

The file format and the block layouts are those of llama.cpp, written here a
second time and independently of the code under test.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from support import tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["TYPES", "permuted", "rounded", "tiny_metadata", "write_gguf", "write_tiny_gguf"]

TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8}
_BLOCK = 32
_ALIGNMENT = 32

_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _nibbles(quants: Array) -> Array:
    """Pack blocks of 32 four-bit values: the first half in the low nibbles."""
    half = _BLOCK // 2
    return np.asarray(quants[:, :half] | (quants[:, half:] << 4), dtype=np.uint8)


def _q4_0(blocks: Array) -> tuple[bytes, Array]:
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
    scale = (extreme / -8).astype(np.float16)
    divisor = np.where(scale == 0, 1, scale).astype(np.float32)
    quants = np.clip(np.round(blocks / divisor) + 8, 0, 15).astype(np.uint8)
    raw = np.concatenate([scale.view(np.uint8), _nibbles(quants)], axis=1)
    return raw.tobytes(), (quants.astype(np.float32) - 8) * scale.astype(np.float32)


def _q4_1(blocks: Array) -> tuple[bytes, Array]:
    low = blocks.min(axis=1, keepdims=True)
    scale = ((blocks.max(axis=1, keepdims=True) - low) / 15).astype(np.float16)
    low = low.astype(np.float16)
    divisor = np.where(scale == 0, 1, scale).astype(np.float32)
    quants = np.clip(np.round((blocks - low.astype(np.float32)) / divisor), 0, 15)
    quants = quants.astype(np.uint8)
    raw = np.concatenate([scale.view(np.uint8), low.view(np.uint8), _nibbles(quants)], axis=1)
    return raw.tobytes(), quants * scale.astype(np.float32) + low.astype(np.float32)


def _q8_0(blocks: Array) -> tuple[bytes, Array]:
    scale = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float16)
    divisor = np.where(scale == 0, 1, scale).astype(np.float32)
    quants = np.clip(np.round(blocks / divisor), -127, 127).astype(np.int8)
    raw = np.concatenate([scale.view(np.uint8), quants.view(np.uint8)], axis=1)
    return raw.tobytes(), quants * scale.astype(np.float32)


_QUANTIZERS: dict[str, Callable[[Array], tuple[bytes, Array]]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q8_0": _q8_0,
}


def _encoded(tensor: Array, kind: str) -> tuple[bytes, Array]:
    """Return the tensor's bytes in the file, and the values that these bytes stand for."""
    if kind in _QUANTIZERS:
        raw, values = _QUANTIZERS[kind](tensor.reshape(-1, _BLOCK).astype(np.float32))
        return raw, values.reshape(tensor.shape).astype(np.float32)
    stored = tensor.astype(np.float16 if kind == "F16" else np.float32)
    return stored.tobytes(), stored.astype(np.float32)


def rounded(tensor: Array, kind: str) -> Array:
    """Return what is left of a tensor after it was stored as this type."""
    return _encoded(tensor, kind)[1]


def permuted(weight: Array, heads: int) -> Array:
    """Return q or k rows in llama.cpp's order: the two halves of each head interleaved."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(weight.shape)


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    """Return a metadata value with its type before it."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    kind = {str: 8, int: 5, float: 6}[type(value[0])] if value else 8
    items = b"".join(_value(item)[4:] for item in value)
    return struct.pack("<IIQ", 9, kind, len(value)) + items


def write_gguf(
    path: Path, metadata: dict[str, Any], tensors: dict[str, tuple[Array, str | int]]
) -> Path:
    """Write a GGUF file; a number as type writes nonsense under that type's number."""
    infos, data = b"", b""
    for name, (tensor, kind) in tensors.items():
        raw = _encoded(tensor, kind)[0] if isinstance(kind, str) else tensor.tobytes()
        number = TYPES[kind] if isinstance(kind, str) else kind
        shape = tuple(reversed(tensor.shape))
        infos += _text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        infos += struct.pack("<IQ", number, len(data))
        data += raw + b"\0" * (-len(raw) % _ALIGNMENT)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(_text(key) + _value(value) for key, value in metadata.items()) + infos
    path.write_bytes(head + b"\0" * (-len(head) % _ALIGNMENT) + data)
    return path


def tiny_metadata() -> dict[str, Any]:
    """Return the metadata of the tiny model: a byte-level vocabulary without merges."""
    specials = list(tiny_model.SPECIAL_TOKENS)
    return {
        "general.architecture": "llama",
        "llama.embedding_length": tiny_model.WIDTH,
        "llama.block_count": tiny_model.LAYERS,
        "llama.feed_forward_length": tiny_model.MLP_WIDTH,
        "llama.attention.head_count": tiny_model.HEADS,
        "llama.attention.head_count_kv": tiny_model.KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": tiny_model.HEAD_DIM,
        "llama.rope.freq_base": 10000.0,
        "llama.context_length": 8192,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tiny_model.byte_alphabet() + specials,
        "tokenizer.ggml.token_type": [1] * 256 + [3] * len(specials),
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": tiny_model.BOS,
        "tokenizer.ggml.eos_token_id": tiny_model.EOS,
        "tokenizer.ggml.padding_token_id": tiny_model.PAD,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": tiny_model.CHAT_TEMPLATE,
    }


def write_tiny_gguf(
    path: Path,
    *,
    matrices: str = "Q4_0",
    embedding: str = "Q8_0",
    tied: bool = False,
    metadata: dict[str, Any] | None = None,
) -> dict[str, Array]:
    """Write the tiny model and return the weights, by mlx-lm's names, that the file stands for.

    Args:
        path: Where to.
        matrices: The type of all matrices but the embedding.
        embedding: The type of the embedding.
        tied: Leave the output matrix out.
        metadata: Replaces entries of :func:`tiny_metadata`; None removes one.
    """
    tensors: dict[str, tuple[Array, str | int]] = {}
    weights: dict[str, Array] = {}
    for name, weight in tiny_model.tiny_weights(tied=tied).items():
        kind = "F32" if weight.ndim == 1 else matrices
        kind = embedding if "embed_tokens" in name else kind
        weights[name] = rounded(weight, kind)
        stored = weight
        for part, heads in (("q_proj", tiny_model.HEADS), ("k_proj", tiny_model.KV_HEADS)):
            if part in name:
                stored = permuted(weight, heads)
        tensors[_file_name(name)] = (stored, kind)
    entries = tiny_metadata() | (metadata or {})
    write_gguf(path, {key: value for key, value in entries.items() if value is not None}, tensors)
    return weights


def _file_name(name: str) -> str:
    module = name.removesuffix(".weight")
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    if module in whole:
        return f"{whole[module]}.weight"
    _, _, layer, part = module.split(".", 3)
    return f"blk.{layer}.{_NAMES[part]}.weight"
