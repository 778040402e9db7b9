"""The tiny model with code that does to its process what a bug in a model or in MLX can do.

Its text is the tiny model's. But a prompt with one of these characters kills,
stops, slows, fails or starves the engine that reads it, each time anew; none of them
is ever generated.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

__all__ = [
    "BREAKS_CACHE",
    "FAILS",
    "HOARDS",
    "KILLS",
    "LOCKS_UP",
    "SEGFAULTS",
    "SLEEPS",
    "SLOWS",
    "STARVES",
    "add_starving_template",
    "write_dangerous_model",
]

KILLS = "\x01"
"""As the kernel does when memory runs out."""
SEGFAULTS = "\x02"
"""As MLX does on the CPU when an allocation fails."""
SLEEPS = "\x03"
"""A step that never returns."""
LOCKS_UP = "\x04"
"""A step that never returns, and keeps all other threads of Python from running."""
SLOWS = "\x05"
"""A chunk or step takes a third of a second, but ends."""
FAILS = "\x06"
"""A step that ends with an error, as on Metal when a kernel takes too long; the process goes on."""
HOARDS = "\x07"
"""Takes 128 MiB for a hundred steps, once: memory that nobody was promised."""
STARVES = "\x08"
"""The text of a chat whose tokens would take more memory than any machine has."""
BREAKS_CACHE = "\x0e"
"""A step that damages all that the prompt cache has stored, as code that keeps it and writes can."""

_CODE = '''\
"""The tiny llama, with characters that it cannot stand."""

import gc
import itertools
import os
import signal
import time

import mlx.core as mx
from mlx_lm.models.llama import Model as _Llama
from mlx_lm.models.llama import ModelArgs

__all__ = ["Model", "ModelArgs"]
hoards = itertools.count()
hoard = [itertools.count(), None]


class Model(_Llama):
    def __call__(self, inputs, *args, **kwargs):
        if hoard[1] is not None and next(hoard[0]) == 100:
            hoard[1] = None
        seen = {*range(1, 32)}.intersection(itertools.chain(*inputs.tolist()))
        if 1 in seen:
            os.kill(os.getpid(), signal.SIGKILL)
        if 2 in seen:
            os.kill(os.getpid(), signal.SIGSEGV)
        if 3 in seen:
            time.sleep(1_000_000)
        if 4 in seen:
            sum(itertools.repeat(0))
        if 5 in seen:
            time.sleep(0.3)
        if 6 in seen:
            raise RuntimeError(
                "[METAL] Command buffer execution failed: Caused GPU Timeout Error (00000002:kIOGPU)"
            )
        if 7 in seen and next(hoards) == 0:
            hoard[1] = mx.zeros(1 << 25) + 1
            mx.eval(hoard[1])
        if 14 in seen:
            for each in gc.get_objects():
                if type(each).__name__ == "SealedLayers":
                    each[0].keys = None
        return super().__call__(inputs, *args, **kwargs)
'''


_STARVING = "{%% if messages[0]['content'] == '%s' %%}{{ 'a' * 10**15 }}{%% endif %%}"


def write_dangerous_model(directory: Path, **options: Any) -> Path:
    """Write it; an engine needs ``trust_remote_code`` to load it.

    Args:
        directory: Made if missing.
        options: Those of :func:`write_tiny_model`.
    """
    write_tiny_model(directory, **options)
    add_starving_template(directory)
    (directory / "dangerous.py").write_text(_CODE, encoding="utf-8")
    config = directory / "config.json"
    fields = json.loads(config.read_text(encoding="utf-8")) | {"model_file": "dangerous.py"}
    config.write_text(json.dumps(fields), encoding="utf-8")
    return directory


def add_starving_template(directory: Path) -> None:
    """Let a model starve its engine of memory when a chat begins with :data:`STARVES`."""
    tokenizer = directory / "tokenizer_config.json"
    fields = json.loads(tokenizer.read_text(encoding="utf-8"))
    fields["chat_template"] = _STARVING % STARVES + fields["chat_template"]
    tokenizer.write_text(json.dumps(fields), encoding="utf-8")
