"""Puts the engine together: model, runner, prompt cache, scheduler. Imports mlx."""

from __future__ import annotations

import gc
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx

from ..models.loading import GenerationDefaults, LoadedModel, load_model
from ..models.model_code import code_policy
from ..protocol import EngineOptions, Loaded, Sampling
from .batch import BatchRunner
from .inbox import Inbox
from .memory import provide_memory
from .runner import RunnerSize
from .scheduler import Scheduler
from .sequential import SequentialRunner
from .tokenizing import PromptEncoder
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from ..models.blas import BlasPreload
    from ..protocol import StepFigures
    from .inbox import Outbox
    from .memory_guard import MemoryGuard
    from .prompt_cache import PromptCache
    from .runner import Runner

__all__ = ["Engine", "load_engine"]

_GPU_PREFILL = (2048, 8)
_CPU_PREFILL = (256, 4)
"""Tokens per prompt and prompts per chunk. A chunk is what a running stream
waits for: mlx-lm's own default on a GPU; on a CPU about a tenth of it."""


class Engine:
    """A loaded model, ready to run. Made and run in one thread, which is the MLX thread."""

    def __init__(self, scheduler: Scheduler, inbox: Inbox) -> None:
        self._scheduler = scheduler
        self._inbox = inbox

    def run(self) -> None:
        """Take requests until the pipe closes."""
        # What was loaded stays: a full collection that walks through it stops all streams for 50 ms.
        # Of 84,000 objects 500 are garbage, not worth the 50 ms before the first request.
        gc.freeze()
        gc.enable()
        self._inbox.start()
        try:
            self._scheduler.run()
        finally:
            mx.clear_streams()


def load_engine(
    options: EngineOptions, connection: Connection, outbox: Outbox, *, blas: BlasPreload
) -> Engine:
    """Load the model, put the engine together, and report it.

    Raises:
        ModelError: The model cannot be served.
    """
    begin = time.monotonic()
    loaded = load_model(
        Path(options.model_directory),
        dequantize=options.dequantize,
        context_length=options.context_length,
        code=code_policy(trust=options.trust_remote_code, ignore=options.ignore_model_code),
    )
    vocabulary = Vocabulary(loaded.tokenizer)
    encoder = PromptEncoder(loaded.tokenizer, vocabulary_size=loaded.vocabulary_size)
    encoder.check_template()
    size = _runner_size(loaded, options)
    guard, prompt_cache = provide_memory(loaded, options, size)
    inbox = Inbox(connection, outbox, encoder, guard, context_length=loaded.context_length)
    scheduler = Scheduler(
        _runner_maker(loaded, size, wired_limit=options.wired_limit),
        prompt_cache,
        guard,
        vocabulary,
        context_length=loaded.context_length,
        vocabulary_size=loaded.vocabulary_size,
        inbox=inbox.items,
        outbox=outbox,
        before_step=blas.threads.adjust if blas.threads else lambda: None,
    )
    report = partial(_report, loaded, blas, guard, prompt_cache, figures=scheduler.figures())
    outbox.send(report(seconds=time.monotonic() - begin))
    return Engine(scheduler, inbox)


def _report(
    loaded: LoadedModel,
    blas: BlasPreload,
    guard: MemoryGuard,
    prompt_cache: PromptCache,
    *,
    figures: StepFigures,
    seconds: float,
) -> Loaded:
    return Loaded(
        context_length=loaded.context_length,
        vocabulary_size=loaded.vocabulary_size,
        has_chat_template=loaded.has_chat_template,
        batchable=loaded.batchable,
        device=loaded.device,
        dtype=loaded.dtype,
        mlx_version=version("mlx"),
        mlx_lm_version=version("mlx-lm"),
        blas=_blas_name(blas),
        prompt_cache_limit_bytes=prompt_cache.limit_bytes,
        sampling=_recommended(loaded.generation_defaults),
        expansion=loaded.expansion,
        load_seconds=seconds,
        figures=figures,
        weights_bytes=guard.weights_bytes,
        ledger_limit_bytes=guard.ledger.limit_bytes,
        largest_tokens=guard.largest_tokens,
    )


def _recommended(defaults: GenerationDefaults) -> Sampling:
    """OpenAI's defaults, with what the model's authors recommend over them."""
    openai = Sampling()
    return Sampling(
        temperature=openai.temperature if defaults.temperature is None else defaults.temperature,
        top_p=openai.top_p if defaults.top_p is None else defaults.top_p,
        top_k=openai.top_k if defaults.top_k is None else defaults.top_k,
    )


def _runner_size(loaded: LoadedModel, options: EngineOptions) -> RunnerSize:
    step, rows = _GPU_PREFILL if loaded.device == "gpu" else _CPU_PREFILL
    return RunnerSize(
        batch=options.max_batch if loaded.batchable else 1,
        prefill_step=options.prefill_step or step,
        prefill_rows=min(rows, options.max_batch) if loaded.paddable else 1,
    )


def _runner_maker(
    loaded: LoadedModel, size: RunnerSize, *, wired_limit: bool
) -> Callable[[], Runner]:
    if not loaded.batchable:
        return partial(
            SequentialRunner,
            loaded.model,
            eos_token_ids=loaded.eos_token_ids,
            prefill_step=size.prefill_step,
        )
    return partial(
        BatchRunner,
        loaded.model,
        eos_token_ids=loaded.eos_token_ids,
        size=size,
        wired_limit=wired_limit,
        paddable=loaded.paddable,
    )


def _blas_name(blas: BlasPreload) -> str:
    if blas.library is not None:
        return blas.library.name
    return "accelerate" if sys.platform == "darwin" else "reference"
