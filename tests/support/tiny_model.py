"""A tiny llama, generated: the model of most tests and of the server's own cost.

Two layers, 64 wide, 260 tokens: 256 bytes and four special tokens, so a
prompt has as many tokens as it has UTF-8 bytes. The same seed gives the same
files, byte for byte. Nothing is learned, but the text is made to be usable:

* Only printable ASCII, newlines and whole two-byte characters (``À`` to
  ``ÿ``, each of them two tokens) are ever likely, so the text is valid UTF-8
  and characters are split across tokens.
* The end-of-sequence token is very unlikely: answers run to ``max_tokens``.
* What was written often becomes unlikely, so greedy text does not stand still.

How: two of the 64 dimensions of the residual stream are written by the
embedding alone, never by a layer. One is a constant, which turns its column of
the output layer into a bias per token; one says "the current token is the
first byte of a character". The rest is random, but for the first layer's
attention: it adds the mean of the tokens so far, from which the output rows
point away.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = [
    "BOS",
    "CHAT_TEMPLATE",
    "EOS",
    "PAD",
    "VOCABULARY",
    "byte_alphabet",
    "tiny_tokenizer",
    "tiny_weights",
    "write_safetensors",
    "write_tiny_model",
]

WIDTH = 64
LAYERS = 2
HEADS = 4
KV_HEADS = 2
HEAD_DIM = 16
MLP_WIDTH = 128
VOCABULARY = 260
"""256 bytes, then :data:`SPECIAL_TOKENS`."""

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
BOS = 256
EOS = 258
"""``<|im_end|>``: what ends an answer."""
PAD = 259

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_CONSTANT = WIDTH - 1
"""The dimension that is the same for every token: the output bias."""
_LEAD = WIDTH - 2
"""The dimension that says: the current token begins a two-byte character."""
_FREE = WIDTH - 2
"""How many dimensions the layers use."""

_LEAD_BYTE = 0xC3
_UNLIKELY = -60.0

_UNBATCHABLE_CODE = '''\
"""The tiny llama with a KV cache that cannot be merged into a batch."""

from mlx_lm.models.cache import KVCache
from mlx_lm.models.llama import Model as _Llama
from mlx_lm.models.llama import ModelArgs

__all__ = ["Model", "ModelArgs"]


class _LoneCache(KVCache):
    @property
    def merge(self):
        raise AttributeError("merge")


class Model(_Llama):
    def make_cache(self):
        return [_LoneCache() for _ in self.layers]
'''


def byte_alphabet() -> list[str]:
    """Return GPT-2's printable stand-in for each byte, by byte value."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(stand_ins)) for byte in range(256)]


def tiny_tokenizer() -> dict[str, Any]:
    """Return ``tokenizer.json``: every byte is a token, nothing is merged."""
    vocabulary = {text: byte for byte, text in enumerate(byte_alphabet())}
    special = [
        {
            "id": 256 + offset,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for offset, text in enumerate(SPECIAL_TOKENS)
    ]
    vocabulary |= {text: 256 + offset for offset, text in enumerate(SPECIAL_TOKENS)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }


def _output_bias() -> Array:
    """Return the bias of each output token: what may appear in text, and how readily."""
    bias = np.full(VOCABULARY, _UNLIKELY, np.float32)
    bias[0x20:0x7F] = 0.0
    bias[ord("a") : ord("z") + 1] = 0.5
    bias[ord(" ")] = 1.0
    bias[ord("\n")] = -0.5
    bias[_LEAD_BYTE] = 0.5
    return bias


def _average_history(weights: dict[str, Array], *, gain: float) -> None:
    """Make the first layer add the mean of the tokens so far to the residual stream.

    The output rows point away from their token's embedding, so what was
    written often becomes unlikely: that is what keeps greedy text moving.
    """
    prefix = "model.layers.0.self_attn"
    weights[f"{prefix}.q_proj.weight"] *= np.float32(0.2)
    values = weights[f"{prefix}.v_proj.weight"]
    basis = np.linalg.qr(values[:, :_FREE].T)[0].T.astype(np.float32)
    values[:] = 0.0
    values[:, :_FREE] = basis
    output = weights[f"{prefix}.o_proj.weight"]
    output[:] = 0.0
    shared = HEADS // KV_HEADS
    for head in range(HEADS):
        kv_head = head // shared
        rows = basis[kv_head * HEAD_DIM : (kv_head + 1) * HEAD_DIM]
        output[:_FREE, head * HEAD_DIM : (head + 1) * HEAD_DIM] = rows.T * np.float32(gain / shared)


def tiny_weights(*, seed: int = 0, tied: bool = False) -> dict[str, Array]:
    """Return the float32 weights by mlx-lm's names.

    With ``tied`` embeddings the output biases above do not exist: the text is
    arbitrary bytes then. It is meant for tests that compare numbers.
    """
    random = np.random.default_rng(seed)

    def normal(rows: int, columns: int, gain: float) -> Array:
        values = random.standard_normal((rows, columns), dtype=np.float32)
        return values * np.float32(gain / np.sqrt(columns))

    embedding = random.standard_normal((VOCABULARY, WIDTH), dtype=np.float32)
    weights = {"model.norm.weight": np.ones(WIDTH, np.float32)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        weights |= {
            f"{prefix}.input_layernorm.weight": np.ones(WIDTH, np.float32),
            f"{prefix}.post_attention_layernorm.weight": np.ones(WIDTH, np.float32),
            f"{prefix}.self_attn.q_proj.weight": normal(HEADS * HEAD_DIM, WIDTH, 2.0),
            f"{prefix}.self_attn.k_proj.weight": normal(KV_HEADS * HEAD_DIM, WIDTH, 2.0),
            f"{prefix}.self_attn.v_proj.weight": normal(KV_HEADS * HEAD_DIM, WIDTH, 2.0),
            f"{prefix}.self_attn.o_proj.weight": normal(WIDTH, HEADS * HEAD_DIM, 2.0),
            f"{prefix}.mlp.gate_proj.weight": normal(MLP_WIDTH, WIDTH, 2.0),
            f"{prefix}.mlp.up_proj.weight": normal(MLP_WIDTH, WIDTH, 2.0),
            f"{prefix}.mlp.down_proj.weight": normal(WIDTH, MLP_WIDTH, 1.0),
        }
        if not tied:
            weights[f"{prefix}.self_attn.o_proj.weight"][_FREE:] = 0.0
            weights[f"{prefix}.mlp.down_proj.weight"][_FREE:] = 0.0
    if not tied:
        head = random.standard_normal((VOCABULARY, WIDTH), dtype=np.float32)
        head[:, :_FREE] *= 4.8 / np.linalg.norm(head[:, :_FREE], axis=1, keepdims=True)
        directions = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
        head[:, :_FREE] -= 4.0 * directions[:, :_FREE]
        _average_history(weights, gain=3.0)
        embedding[:, _FREE:] = 0.0
        embedding[:, _CONSTANT] = 4.0
        embedding[_LEAD_BYTE, _LEAD] = 8.0
        head[:, _CONSTANT] = _output_bias()
        head[:, _LEAD] = 0.0
        head[:0x80, _LEAD] = _UNLIKELY
        head[0x80:0xC0, _LEAD] = -2 * _UNLIKELY
        head[_LEAD_BYTE, _LEAD] = _UNLIKELY
        weights["lm_head.weight"] = head
    weights["model.embed_tokens.weight"] = embedding
    return weights


def tiny_config(*, context_length: int, tied: bool, sliding_window: int) -> dict[str, Any]:
    """Return ``config.json``."""
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "intermediate_size": MLP_WIDTH,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": context_length,
        "tie_word_embeddings": tied,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "torch_dtype": "float32",
    }
    if sliding_window:
        config["sliding_window"] = sliding_window
        config["layer_types"] = ["sliding_attention", "full_attention"]
    return config


def write_safetensors(path: Path, tensors: dict[str, Array]) -> None:
    """Write numpy arrays as safetensors, keys in order, the same bytes every time."""
    names = {"float32": "F32", "float16": "F16", "uint32": "U32"}
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    offset = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        header[name] = {
            "dtype": names[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for name in sorted(tensors):
            file.write(np.ascontiguousarray(tensors[name]).tobytes())


def _quantized(weights: dict[str, Array], *, bits: int, group_size: int) -> dict[str, Array]:
    """Return the weights with every matrix in MLX's affine quantized form."""
    import mlx.core as mx

    result = {}
    for name, weight in weights.items():
        if weight.ndim != 2:
            result[name] = weight
            continue
        parts = mx.quantize(mx.array(weight), group_size=group_size, bits=bits)
        base = name.removesuffix("weight")
        for part, kind in zip(parts, ("weight", "scales", "biases"), strict=True):
            result[base + kind] = np.array(part)
    return result


def write_tiny_model(
    directory: Path,
    *,
    seed: int = 0,
    context_length: int = 8192,
    bits: Literal[0, 4, 8] = 0,
    half: bool = False,
    tied: bool = False,
    sliding_window: int = 0,
    batchable: bool = True,
    chat_template: bool = True,
    generation: dict[str, Any] | None = None,
) -> Path:
    """Write the tiny model as a directory that ``mlx_lm.load`` loads.

    Args:
        directory: Made if missing; files in it are overwritten.
        seed: Other weights, other text.
        context_length: ``max_position_embeddings``.
        bits: Quantize all matrices in groups of 32; 0 leaves them as they are.
        half: Write float16 in place of float32.
        tied: One matrix for embedding and output (arbitrary bytes as text).
        sliding_window: The first layer sees this many tokens back; 0 sees all.
        batchable: False ships the model with code of its own (``model_file``,
            so ``trust_remote_code`` is needed), whose cache cannot be batched.
        chat_template: False leaves it out.
        generation: More entries for ``generation_config.json``.

    Returns:
        ``directory``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    weights = tiny_weights(seed=seed, tied=tied)
    config = tiny_config(context_length=context_length, tied=tied, sliding_window=sliding_window)
    if bits:
        weights = _quantized(weights, bits=bits, group_size=32)
        config["quantization"] = {"group_size": 32, "bits": bits}
    if half:
        weights = {
            name: weight.astype(np.float16) if weight.dtype == np.float32 else weight
            for name, weight in weights.items()
        }
    if not batchable:
        config["model_file"] = "unbatchable.py"
        (directory / "unbatchable.py").write_text(_UNBATCHABLE_CODE, encoding="utf-8")
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[0],
        "eos_token": "<|im_end|>",
        "pad_token": "<|pad|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
    }
    if chat_template:
        tokenizer_config["chat_template"] = CHAT_TEMPLATE
    files = {
        "config.json": config,
        "generation_config.json": {"bos_token_id": BOS, "eos_token_id": EOS, **(generation or {})},
        "tokenizer.json": tiny_tokenizer(),
        "tokenizer_config.json": tokenizer_config,
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    write_safetensors(directory / "model.safetensors", weights)
    return directory
