"""Convert a .gguf file of the llama family into a model directory that mlx-lm loads.

Quantized tensors stay as they are: MLX's affine form with groups of 32 holds
Q4_0, Q4_1 and Q8_0 exactly. Only names change, and what is said about them:

* llama.cpp stores the rows of q and k in the order in which its rotary embedding
  takes them: pairs of neighbours, MLX's ``traditional``.
* Each tensor has its own type in the file; one type is the directory's default
  and the others are listed by module.

mlx is imported when a file is converted, not before.
"""

from __future__ import annotations

import json
import math
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from ...resilience.errors import ModelError
from .gguf_header import check_supported, read_header
from .gguf_tokenizer import end_tokens, tokenizer_files
from .store import origin_of, sha256_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from .gguf_header import GgufHeader
    from .store import Store

__all__ = ["convert", "convert_into", "entry_of"]

_GROUP = 32
_BITS = {2: 4, 3: 4, 8: 8}
"""Bits of a quantized tensor by its type in the file."""

_MODULES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FACTORS = "rope_freqs"
"""A tensor that holds the rotary factors of Llama 3.1 and later, in place of their formula."""

_ATTENTION_BIASES = frozenset(f"self_attn.{name}_proj" for name in "qkvo")
_MLP_BIASES = frozenset(f"mlp.{name}_proj" for name in ("gate", "up", "down"))


def entry_of(digest: str) -> str:
    """Return the store's entry for a file with this SHA-256."""
    return f"gguf-{digest[:20]}"


def convert(path: Path, store: Store) -> Path:
    """Convert the file into the store, unless its content is there already.

    Two at once do not collide: the second waits and finds the first's result.

    Returns:
        The published directory.

    Raises:
        ModelError: See :func:`convert_into`; or the disk is full.
    """
    check_supported(path, read_header(path))
    before = origin_of(path)
    digest = sha256_of(path)
    entry = entry_of(digest)
    with store.lock(entry):
        found = store.find(entry)
        if found is not None and store.find_converted(path) == found:
            return found
        # The same content at another path or time is written anew: the manifest tells
        # which file it belongs to, so that a start need not hash gigabytes.
        with store.publishing(entry, {**before, "sha256": digest}) as directory:
            convert_into(path, directory)
            if origin_of(path) != before:
                raise ModelError(f"{path} changed while it was converted. Try again.")
    return store.path(entry)


def convert_into(path: Path, directory: Path) -> None:
    """Write the model in the .gguf file as config, weights and tokenizer into ``directory``.

    Raises:
        ModelError: The file is damaged, or uses something that is not
            supported; the message names it.
    """
    import mlx.core as mx  # noqa: PLC0415 - the server process may import this module

    header = read_header(path)
    check_supported(path, header)
    _check_room(directory, header)
    try:
        tensors = mx.load(str(path), format="gguf")
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{path} is damaged: its tensors cannot be read.") from error
    assert isinstance(tensors, dict)  # what mlx returns for this format
    factors = tensors.pop(f"{_ROPE_FACTORS}.weight", None)
    weights = {_name(path, name): tensor for name, tensor in tensors.items()}
    with _damage_named(path):
        files = _described(path, header, set(weights), factors)
    for name, content in files.items():
        text = json.dumps(content, ensure_ascii=True, indent=1)
        (directory / name).write_text(text, encoding="utf-8")
    mx.save_safetensors(str(directory / "model.safetensors"), weights, {"format": "mlx"})


def _described(
    path: Path,
    header: GgufHeader,
    weights: set[str],
    factors: Any | None,  # noqa: ANN401 - mlx's
) -> dict[str, dict[str, Any]]:
    """Return the JSON files of the model, by name."""
    config = _config(path, header, weights)
    if factors is not None:
        frequencies = cast("list[float]", factors.tolist())
        config["rope_scaling"] = _llama3_scaling(path, config, frequencies)
    config |= _quantization(header)
    files = tokenizer_files(header.metadata)
    ends = end_tokens(header.metadata)
    begin = header.metadata.get("tokenizer.ggml.bos_token_id")
    tokens = {"bos_token_id": begin, "eos_token_id": ends}
    return files | {"config.json": config | tokens, "generation_config.json": tokens}


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn what metadata of the wrong types do to the conversion into a sentence.

    The file names the types itself: a text can stand where a number should.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path} is damaged: its metadata are of the wrong types. Fetch it again."
        ) from error


def _check_room(directory: Path, header: GgufHeader) -> None:
    """Raise before writing what the disk cannot hold; mlx reports it too late and badly."""
    needed = sum(tensor.stored_bytes for tensor in header.tensors) * 21 // 20
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise ModelError(
            f"The converted model takes {needed / 1e9:.1f} GB, and the disk of {directory.parent} "
            f"has {free / 1e9:.1f} GB free. Make room, or choose another place with "
            "PHAROS_CACHE_DIR."
        )


def _name(path: Path, name: str) -> str:
    """Return mlx-lm's name of a tensor."""
    module, _, part = name.rpartition(".")
    if module in _MODULES:
        return f"{_MODULES[module]}.{part}"
    pieces = module.split(".")
    if len(pieces) == 3 and pieces[0] == "blk" and pieces[2] in _LAYER_MODULES:  # noqa: PLR2004
        return f"model.layers.{pieces[1]}.{_LAYER_MODULES[pieces[2]]}.{part}"
    raise ModelError(f"{path.name} holds the tensor {name!r}, which no supported llama has.")


def _config(path: Path, header: GgufHeader, weights: set[str]) -> dict[str, Any]:
    """Return ``config.json`` without its quantization."""
    metadata = header.metadata

    def required(key: str) -> Any:  # noqa: ANN401 - a number of the file
        if key not in metadata:
            raise ModelError(f"{path.name} is incomplete: its metadata lacks {key}.")
        return metadata[key]

    width, heads = required("llama.embedding_length"), required("llama.attention.head_count")
    head_dim = metadata.get("llama.attention.key_length", width // heads)
    rotated = metadata.get("llama.rope.dimension_count", head_dim)
    if rotated != head_dim or metadata.get("llama.attention.value_length", head_dim) != head_dim:
        raise ModelError(
            f"{path.name} rotates {rotated} of {head_dim} dimensions or has values of another "
            "width than keys, which is not supported."
        )
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    if "token_embd.weight" not in shapes:
        raise ModelError(f"{path.name} is incomplete: it holds no token embedding.")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": required("llama.block_count"),
        "intermediate_size": required("llama.feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": required("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.get("llama.rope.freq_base", 10000.0),
        "rope_traditional": True,
        "vocab_size": shapes["token_embd.weight"][0],
        "max_position_embeddings": required("llama.context_length"),
        "tie_word_embeddings": "lm_head.weight" not in weights,
        "attention_bias": _has_biases(path, weights, _ATTENTION_BIASES),
        "mlp_bias": _has_biases(path, weights, _MLP_BIASES),
    }
    scaling = _scaling(path, metadata)
    return config | ({"rope_scaling": scaling} if scaling else {})


def _has_biases(path: Path, weights: set[str], modules: frozenset[str]) -> bool:
    """Return whether all of the modules have a bias; some but not all is not supported."""
    found = {
        name.split(".", 3)[3].removesuffix(".bias")
        for name in weights
        if name.startswith("model.layers.") and name.endswith(".bias")
    } & modules
    if found and found != modules:
        raise ModelError(
            f"{path.name} has biases in {', '.join(sorted(found))} only, which is not supported."
        )
    return bool(found)


def _scaling(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary scaling that the metadata asks for; empty for none."""
    kind = metadata.get("llama.rope.scaling.type", "none")
    factor = metadata.get("llama.rope.scaling.factor", 0.0)
    if kind == "none" or not factor:
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        original = metadata.get("llama.rope.scaling.original_context_length")
        if original:
            return {
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original,
            }
    raise ModelError(f"{path.name} scales its rotary embedding by {kind!r}, without support here.")


def _llama3_scaling(path: Path, config: dict[str, Any], factors: list[float]) -> dict[str, Any]:
    """Return the formula behind the rotary factors of Llama 3.1 and later.

    The file holds the result per frequency; mlx-lm wants the parameters. All
    published models use low factor 1, high factor 4 and 8192 tokens. The
    largest factor is the parameter; the others prove that the rest is right.
    """
    factor, low, high, original = max(factors), 1.0, 4.0, 8192
    dims, theta = config["head_dim"], config["rope_theta"]
    for index, found in enumerate(factors):
        wavelength = 2 * math.pi * theta ** (2 * index / dims)
        if wavelength < original / high:
            expected = 1.0
        elif wavelength > original / low:
            expected = factor
        else:
            smooth = (original / wavelength - low) / (high - low)
            expected = 1 / ((1 - smooth) / factor + smooth)
        if not math.isclose(found, expected, rel_tol=1e-3):
            raise ModelError(
                f"{path.name} has rotary factors that are not those of Llama 3, without support "
                "here."
            )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _quantization(header: GgufHeader) -> dict[str, Any]:
    """Return the ``quantization`` entry: the most frequent type, and each module that differs."""
    bits: dict[str, int] = {}
    for tensor in header.tensors:
        if tensor.type in _BITS:
            module = _name_of_module(tensor.name)
            bits[module] = _BITS[tensor.type]
    if not bits:
        return {}
    counts = list(bits.values())
    usual = max(set(counts), key=counts.count)
    quantization: dict[str, Any] = {"group_size": _GROUP, "bits": usual}
    for module, own in sorted(bits.items()):
        if own != usual:
            quantization[module] = {"group_size": _GROUP, "bits": own}
    return {"quantization": quantization}


def _name_of_module(tensor: str) -> str:
    pieces = tensor.split(".")
    if pieces[0] == "blk":
        return f"model.layers.{pieces[1]}.{_LAYER_MODULES[pieces[2]]}"
    return _MODULES[pieces[0]]
