"""Tiny models of other architectures, generated: what each layer keeps differs from kind to kind.

Built from mlx-lm's own model classes with random weights and the tokenizer of
:mod:`.tiny_model`. Text is printable ASCII, because the output rows of all
other tokens are zero; answers run to ``max_tokens`` for the same reason.
"""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

from support.tiny_model import BOS, EOS, VOCABULARY, write_tiny_model

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["KINDS", "WINDOW", "write_kind"]

WINDOW = 40
"""Tokens that a layer with a sliding window or chunks looks back."""

_ATTENTION: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
_RECURRENT: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "state_size": 8,
    "conv_kernel": 4,
    "time_step_rank": 4,
    "layer_norm_epsilon": 1e-5,
    "use_bias": False,
    "use_conv_bias": True,
    "tie_word_embeddings": False,
}
_ALTERNATING = ["sliding_attention", "full_attention"]

KINDS: dict[str, dict[str, Any]] = {
    # A sliding window in one layer, all tokens in the other; the second is a mixture of experts.
    "gemma3_text": _ATTENTION
    | {"sliding_window": WINDOW, "sliding_window_pattern": 2, "query_pre_attn_scalar": 12},
    "gpt_oss": _ATTENTION
    | {
        "sliding_window": WINDOW,
        "layer_types": _ALTERNATING,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    # Recurrent state alone. mlx-lm's code of the first does not know of padding.
    "mamba": _RECURRENT,
    "mamba2": _RECURRENT
    | {"num_heads": 4, "head_dim": 24, "n_groups": 1, "time_step_limit": [0.001, 100.0]},
    # Recurrent state in some layers, all tokens in the others.
    "lfm2": _ATTENTION
    | {
        "norm_eps": 1e-5,
        "layer_types": ["conv", "full_attention"],
        "conv_bias": True,
        "conv_L_cache": 3,
        "block_dim": 48,
        "block_ff_dim": 64,
        "block_multiple_of": 16,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
    },
    "qwen3_next": _ATTENTION
    | {
        "full_attention_interval": 2,
        "partial_rotary_factor": 0.5,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 3,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "shared_expert_intermediate_size": 32,
        "moe_intermediate_size": 32,
        "mlp_only_layers": [],
    },
    # Both in the same layer.
    "falcon_h1": _ATTENTION
    | {
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_d_conv": 4,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 16,
    },
    # Windows that cannot be batched.
    "llama4": {
        "text_config": _ATTENTION
        | {
            "num_hidden_layers": 4,
            "model_type": "llama4_text",
            "vocab_size": VOCABULARY,
            "intermediate_size_mlp": 64,
            "attention_chunk_size": WINDOW,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
            "attention_bias": False,
            "rope_scaling": None,
            "use_qk_norm": True,
        }
    },
    # Plain layers, whose batches mlx-lm gets wrong.
    "afm7": {
        "hidden_dim": 48,
        "num_layers": 2,
        "num_hidden_layers": 2,
        "num_kv_reuse_layers": 1,
        "num_heads": 4,
        "num_kv_heads": 2,
    },
}
"""Their configurations, by mlx-lm's name of the model type."""


def write_kind(directory: Path, kind: str) -> Path:
    """Write a model that ``mlx_lm.load`` loads. The same files for the same kind, every time.

    Args:
        directory: Made if missing; files in it are overwritten.
        kind: A key of :data:`KINDS`.

    Returns:
        ``directory``.
    """
    write_tiny_model(directory)
    config = KINDS[kind] | {
        "model_type": kind,
        "vocab_size": VOCABULARY,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    model_class, arguments = _get_classes(config)
    model = model_class(arguments.from_dict(config))
    dice = np.random.default_rng(zlib.crc32(kind.encode()))
    parameters = dict(tree_flatten(model.parameters()))
    weights = {name: mx.array(_drawn(dice, name, parameters[name])) for name in sorted(parameters)}
    tied = not any("lm_head" in name for name in weights)
    for name, weight in weights.items():
        if "lm_head" in name or (tied and "embed" in name):
            weight[:0x20] = weight[0x7F:] = 0.0
    mx.save_safetensors(str(directory / "model.safetensors"), weights, {"format": "mlx"})
    return directory


def _drawn(dice: np.random.Generator, name: str, initial: mx.array) -> np.ndarray:
    """Return weights for a parameter; vectors keep what the model's class gives them."""
    if initial.ndim < 2:
        return np.array(initial.astype(mx.float32))
    fan_in = initial[0].size if "conv" in name else initial.shape[-1]
    return dice.standard_normal(initial.shape, np.float32) * np.float32(2.0 / np.sqrt(fan_in))
