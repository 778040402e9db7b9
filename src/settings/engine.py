"""The settings of the engine: what runs together, and what it may hold."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator

from .field import setting, size_or_auto

__all__ = ["EngineSettings"]


class EngineSettings(BaseModel):
    """The groups "Engine" and "Answers"."""

    max_batch: int = setting(
        32,
        "Sequences decoded together at most.",
        group="Engine",
        reason="Beyond it each stream gets slower than people read on most machines.",
        metavar="N",
        ge=1,
        le=4096,
    )
    max_queue: int = setting(
        64,
        "Sequences that wait for a place in the batch at most; "
        "a request beyond them is answered with 503 and Retry-After.",
        group="Engine",
        reason="Twice the batch: who is further behind does better to come back.",
        metavar="N",
        ge=0,
        le=65536,
    )
    prefill_step: int = setting(
        0,
        "Prompt tokens worked off in one piece, between which running streams go on. "
        "0: chosen by device.",
        group="Engine",
        reason="Small pieces keep streams smooth, large ones use a GPU better.",
        metavar="TOKENS",
        ge=0,
        le=2**16,
    )
    prompt_cache: Annotated[int, BeforeValidator(size_or_auto)] = setting(
        "auto",
        "Memory for the KV caches of past prompts, for example 2GiB. "
        "auto: a share of the machine's; 0: off.",
        group="Engine",
        reason="A conversation's next turn repeats the last one; its prefill is then free.",
        metavar="SIZE",
    )
    memory_limit: Annotated[int, BeforeValidator(size_or_auto)] = setting(
        "auto",
        "Memory that MLX may hold in all, for example 12GiB: the model, running requests and the "
        "prompt cache. auto: nine tenths of what is free when the model is loaded.",
        group="Engine",
        reason="A container's limit and the machine's free memory are known; what else will need "
        "memory later is not.",
        metavar="SIZE",
    )
    dequantize: Literal["auto", "on", "off"] = setting(
        "auto",
        "Expand a quantized model to float32 when it runs on the CPU. auto: where memory allows.",
        group="Engine",
        reason="On the CPU float32 with a fast BLAS is many times faster than 4 bits.",
    )
    blas: Literal["auto", "off"] = setting(
        "auto",
        "Put an optimised BLAS in front of MLX's own on the Linux CPU.",
        group="Engine",
        reason="MLX's wheel for Linux links the reference BLAS, which is over ten times slower.",
    )
    wired_limit: bool = setting(
        False,
        "Let MLX wire memory on Metal, so that the system cannot page it out.",
        group="Engine",
        reason="Wiring most of the memory has ended in kernel panics for others.",
    )
    max_tokens: int = setting(
        0,
        "Tokens of an answer at most where the request does not say. "
        "0: to the end of the context window.",
        group="Answers",
        reason="An answer that is cut without being asked for looks like a wrong answer.",
        metavar="TOKENS",
        ge=0,
        le=2**24,
    )
