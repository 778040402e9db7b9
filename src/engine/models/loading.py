"""Load a model directory into the engine process.

Everything that can be known to be wrong is found before mlx touches the
weights: a file that is cut, code that would run, memory that is not there.
What remains are faults of foreign code, which end as :class:`ModelError` too.

Import this module after ``blas.preload()``: it imports mlx.
"""

from __future__ import annotations

import importlib.util
import logging
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

# mlx_lm lowers the limit of open files of the process that imports it, to 2048 at most.
_OPEN_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)

import mlx.core as mx  # noqa: E402
from mlx_lm.models.cache import make_prompt_cache  # noqa: E402
from mlx_lm.utils import (  # noqa: E402
    MODEL_REMAPPING,
    _get_classes,
    dequantize_model,
    load_tokenizer,
)
from mlx_lm.utils import load_model as _load_weights  # noqa: E402

from ...resilience.errors import ModelError  # noqa: E402
from .cache_layers import is_batchable  # noqa: E402
from .directory import inspect_directory  # noqa: E402
from .machine import available_memory  # noqa: E402
from .padding import MISCOMPUTED, is_paddable  # noqa: E402
from .weights import read_json  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlx.nn.layers.base import Module
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from .model_code import CodePolicy
    from .weights import Weights

__all__ = ["Dequantize", "GenerationDefaults", "LoadedModel", "check_loadable", "load_model"]

Dequantize = Literal["auto", "on", "off"]

_log = logging.getLogger(__name__)

_DEFAULT_CONTEXT = 4096
"""Where neither model nor tokenizer tell their context window."""

_PLAUSIBLE_CONTEXT = 1 << 30
"""Tokenizers without a limit report 10^30."""

_MOST_TOKENS = 1 << 31
"""A token's number takes 32 bits."""

_AUTO_SHARE = 0.5
"""With ``auto``, the expanded weights may take this share of the memory that is free: the rest
is for KV, the prompt cache and the server."""

_GIB = 1 << 30


def _restore_open_files() -> None:
    """Undo mlx_lm's limit; the hard one only comes back where the process may raise it."""
    soft, hard = _OPEN_FILES
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    except (ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard), hard))


_restore_open_files()


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What ``generation_config.json`` recommends; None where it says nothing."""

    temperature: float | None
    top_p: float | None
    top_k: int | None


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with its weights in memory. Owned by the thread that loaded it."""

    model: Module
    tokenizer: TokenizerWrapper
    context_length: int
    """Tokens of prompt and answer together at most."""
    vocabulary_size: int
    """The width of the logits; the tokenizer may know fewer tokens."""
    has_chat_template: bool
    batchable: bool
    """False where a layer's KV cache cannot be merged with another request's, or must not be."""
    paddable: bool
    """Whether prompts of different lengths can be computed in one pass; see :mod:`.padding`."""
    device: str
    """``cpu`` or ``gpu``."""
    dtype: str
    """The dtype of the computation, for example ``float32``: that of the KV cache."""
    expansion: str
    """A sentence: whether the weights were expanded to float32, and why or why not."""
    eos_token_ids: frozenset[int]
    generation_defaults: GenerationDefaults
    load_seconds: float


def load_model(
    directory: Path,
    *,
    dequantize: Dequantize = "auto",
    context_length: int = 0,
    code: CodePolicy = "refuse",
) -> LoadedModel:
    """Load the model in ``directory`` on mlx's default device.

    Args:
        directory: ``config.json``, ``model*.safetensors`` and a tokenizer.
        dequantize: Expand weights to float32 on the CPU. ``auto`` does so
            where it takes at most half of the free memory.
        context_length: Upper bound of the context window; 0 takes the model's own.
        code: What becomes of code that came with the model.

    Raises:
        ModelError: The model is damaged, incomplete, of an unknown type, wants
            to run code that is not trusted, or does not fit in memory.
    """
    begin = time.monotonic()
    config, expand, expansion = _checked(directory, dequantize, code)
    model, tokenizer = _read(directory, config, expand=expand, trusted=code == "run")
    with _faults_of(directory, "weights"):
        # Not evaluated: the graph of one token tells shapes and types, and that they fit.
        cache = make_prompt_cache(model)
        logits = model(mx.array([[0]]), cache=cache)
    vocabulary_size = int(logits.shape[-1])
    batchable = config.get("model_type") not in MISCOMPUTED and is_batchable(cache)
    if not batchable:
        _log.warning("requests run one after the other: mlx-lm cannot batch this model")
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        context_length=_context_length(config, tokenizer, context_length),
        vocabulary_size=vocabulary_size,
        has_chat_template=bool(tokenizer.has_chat_template),
        batchable=batchable,
        paddable=batchable and is_paddable(model, vocabulary_size=vocabulary_size),
        device=_device(),
        dtype=str(logits.dtype).removeprefix("mlx.core."),
        expansion=expansion,
        eos_token_ids=frozenset(int(token) for token in tokenizer.eos_token_ids),
        generation_defaults=_generation_defaults(directory),
        load_seconds=time.monotonic() - begin,
    )


def check_loadable(
    directory: Path, *, dequantize: Dequantize = "auto", code: CodePolicy = "refuse"
) -> None:
    """Raise what :func:`load_model` would raise before it reads weights."""
    _checked(directory, dequantize, code)


def _checked(
    directory: Path, dequantize: Dequantize, code: CodePolicy
) -> tuple[dict[str, Any], bool, str]:
    """Return the config, and whether to expand and why."""
    config, weights = inspect_directory(directory, code=code)
    _check_type(config)
    return config, *_plan_expansion(weights, dequantize)


def _model(directory: Path, *, expand: bool, trusted: bool) -> Module:
    """Read the weights, all of them, before this returns."""
    model, _ = _load_weights(directory, lazy=True, trust_remote_code=trusted)
    if expand:
        # Scales first: expanding in float16 would round every weight.
        model.set_dtype(mx.float32)
        model = dequantize_model(model)
    mx.eval(model.parameters())
    mx.clear_cache()
    return cast("Module", model)


def _tokenizer(directory: Path, config: dict[str, Any], *, trusted: bool) -> TokenizerWrapper:
    with _faults_of(directory, "tokenizer"):
        tokenizer = load_tokenizer(
            directory, {"trust_remote_code": trusted}, eos_token_ids=_end_tokens(directory, config)
        )
        return cast("TokenizerWrapper", tokenizer)


def _end_tokens(directory: Path, config: dict[str, Any]) -> int | list[int] | None:
    """Return the ids that end an answer: those of ``generation_config.json`` come first."""
    path = directory / "generation_config.json"
    own = read_json(path).get("eos_token_id") if path.is_file() else None
    ends = own or config.get("eos_token_id")
    if ends is not None and not all(map(_is_token, ends if isinstance(ends, list) else [ends])):
        raise ModelError(f"{directory.name} is damaged: its eos_token_id is no token's number.")
    return cast("int | list[int] | None", ends)


def _is_token(value: object) -> bool:
    return type(value) is int and 0 <= value < _MOST_TOKENS


def _read(
    directory: Path, config: dict[str, Any], *, expand: bool, trusted: bool
) -> tuple[Module, TokenizerWrapper]:
    """Read tokenizer and weights at the same time.

    The tokenizer touches no mlx, so it loads in another thread while mlx reads
    and expands. The architecture's module is imported before: it may make
    arrays, which belong to a thread.
    """
    if "model_file" not in config:
        with _faults_of(directory, "weights"):
            _get_classes(config)
    with ThreadPoolExecutor(1, "tokenizer") as second:
        pending = second.submit(_tokenizer, directory, config, trusted=trusted)
        with _faults_of(directory, "weights"):
            model = _model(directory, expand=expand, trusted=trusted)
        return model, pending.result()


def _device() -> str:
    return "gpu" if mx.default_device() == mx.gpu else "cpu"


def _check_type(config: dict[str, Any]) -> None:
    """Refuse a model type that the installed mlx-lm has no code for."""
    if config.get("model_file") is not None:
        return
    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind.isidentifier():
        raise ModelError("config.json names no model_type, so this is no model that mlx-lm loads.")
    if importlib.util.find_spec(f"mlx_lm.models.{MODEL_REMAPPING.get(kind, kind)}") is None:
        raise ModelError(f"The model type {kind!r} is not supported by the installed mlx-lm.")


def _plan_expansion(weights: Weights, dequantize: Dequantize) -> tuple[bool, str]:
    """Decide whether the weights become float32, and refuse what cannot fit at all."""
    if _device() == "gpu":
        return False, "not expanded: the GPU computes with the stored weights"
    free = available_memory()
    stored, expanded = weights.stored_bytes / _GIB, weights.float32_bytes / _GIB
    if weights.stored_bytes > free:
        raise ModelError(
            f"The model takes {stored:.1f} GiB, and {free / _GIB:.1f} GiB of memory are free. "
            "Choose a smaller or more strongly quantized model."
        )
    if weights.is_float32:
        return False, "not expanded: the weights are float32"
    if dequantize == "off":
        return False, "not expanded: switched off by the setting"
    if dequantize == "on":
        if weights.float32_bytes > free:
            raise ModelError(
                f"Expanded to float32 the model takes {expanded:.1f} GiB, and "
                f"{free / _GIB:.1f} GiB of memory are free. Set dequantize to auto or off."
            )
        return True, f"expanded to float32 ({expanded:.2f} GiB) by the setting"
    if weights.float32_bytes > free * _AUTO_SHARE:
        return False, (
            f"not expanded: float32 would take {expanded:.1f} GiB, more than half of the "
            f"{free / _GIB:.1f} GiB that are free"
        )
    return True, f"expanded to float32 ({expanded:.2f} GiB), which is faster on the CPU"


def _context_length(config: dict[str, Any], tokenizer: TokenizerWrapper, bound: int) -> int:
    """Return the model's context window, cut to the operator's bound (0: none)."""
    text = config.get("text_config")
    own = 0
    for source in (config, text if isinstance(text, dict) else {}):
        for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
            value = source.get(name)
            if not own and type(value) is int and 0 < value < _PLAUSIBLE_CONTEXT:
                own = value
    if not own:
        limit = getattr(tokenizer, "model_max_length", None)
        own = (
            int(limit)
            if isinstance(limit, int) and 0 < limit < _PLAUSIBLE_CONTEXT
            else _DEFAULT_CONTEXT
        )
    if bound > own:
        _log.warning("context_length is %d, and this model's own is %d: that is used", bound, own)
    return min(own, bound) if bound > 0 else own


def _generation_defaults(directory: Path) -> GenerationDefaults:
    """Read what the model recommends; one that no request could ask for is none."""
    path = directory / "generation_config.json"
    content = read_json(path) if path.is_file() else {}

    def number(name: str, most: float) -> float | None:
        value = content.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value) if 0 <= value <= most else None  # NaN is in no range

    top_k = number("top_k", _MOST_TOKENS)
    return GenerationDefaults(
        temperature=number("temperature", 2.0),
        top_p=number("top_p", 1.0) or None,
        top_k=None if top_k is None else int(top_k),
    )


@contextmanager
def _faults_of(directory: Path, part: str) -> Iterator[None]:
    """Turn whatever foreign model code raises into an error for the operator.

    A model's own code, mlx-lm's hundred architectures and the tokenizer
    libraries raise anything: this is a plugin border. The cause stays chained.
    """
    try:
        yield
    except ModelError:
        raise
    except MemoryError as error:
        raise ModelError(f"{directory.name}: there is not enough memory for it.") from error
    except Exception as error:
        raise ModelError(
            f"{directory.name} cannot be loaded: its {part} failed with "
            f"{type(error).__name__}. {_ADVICE[part]}"
        ) from error


_ADVICE = {
    "weights": "The weights do not match config.json, or one of the two is damaged.",
    "tokenizer": "The tokenizer's files are missing or damaged, or need a newer version of "
    "transformers.",
}
