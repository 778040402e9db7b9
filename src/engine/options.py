"""What an engine is told when it starts."""

from __future__ import annotations

from typing import Literal

from .wire import Value

__all__ = ["EngineOptions"]


class EngineOptions(Value, frozen=True):
    """What the engine needs to know at start; it never reads settings or environment itself."""

    model_directory: str
    """A local directory that mlx-lm can load (``config.json``, safetensors, tokenizer)."""
    max_batch: int
    """Sequences decoded together at most."""
    prefill_step: int
    """Prompt tokens of one prefill chunk; 0 lets the engine choose by device."""
    prompt_cache_bytes: int
    """Bound of the prompt cache in bytes; 0 switches it off; -1 lets the engine choose."""
    context_length: int
    """Upper bound of the context window in tokens; 0 takes the model's own."""
    dequantize: Literal["auto", "on", "off"]
    """Whether a quantized model is expanded to float32 on the CPU."""
    blas: Literal["auto", "off"]
    """Whether an optimised BLAS is put in front of MLX's own on the Linux CPU."""
    trust_remote_code: bool
    """Whether code shipped with a model may run."""
    wired_limit: bool
    """Whether mlx may wire memory on Metal (see mlx's ``set_wired_limit``)."""
    memory_limit_bytes: int = -1
    """What MLX may hold in all: weights, KV state, prompt cache, work in progress. -1 lets the
    engine choose by what is free."""
    ignore_model_code: bool = False
    """Whether a model with code beside it is served, the code unused."""
    halvings: int = 0
    """How often it halves what it does and keeps at once, to begin with: an engine before it died,
    and too much may have been why. It grows back by itself."""
