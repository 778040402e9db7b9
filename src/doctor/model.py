"""Whether the configured model is there, whole, and of a kind that can be served."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from ..config import ConfigurationError
from ..engine.models.source import resolve_local
from ..engine.models.store import MANIFEST, Store
from ..resilience.errors import ModelError
from .finding import Finding

if TYPE_CHECKING:
    from pathlib import Path

    from ..config import ConfigValidator
    from ..engine.models.source import Source
    from ..settings import Settings

__all__ = ["check_model"]

_CHECK_SECONDS = 120.0
"""mlx-lm is imported in a few seconds; a cold disk or a busy machine may need much more."""


def check_model(settings: Settings, validator: ConfigValidator) -> Finding:
    """Find the model's files, compare what Pharos wrote with its checksums, and ask mlx-lm."""
    store = Store(settings.cache_dir)
    try:
        source = validator.validate_model_path(settings.model)
        directory = resolve_local(source, store)
    except ConfigurationError as error:
        return _failing(error.problems[0].text, "name another model: --model M")
    except ModelError as error:
        return _failing(error.message, "name another model: --model M")
    if directory is None:
        return _absent(source)
    try:
        if (directory / MANIFEST).is_file():
            store.verify(directory)
    except ModelError as error:
        return _failing(error.message, f"make it again: pharos pull {source.name}")
    problem = _load_problem(directory, settings) if source.kind in {"directory", "hub"} else ""
    if problem:
        return _failing(problem, "do as it says, or name another model: --model M")
    size = sum(path.stat().st_size for path in directory.iterdir() if path.is_file())
    figures: dict[str, object] = {"model": source.name, "kind": source.kind, "present": True}
    figures |= {"directory": str(directory), "bytes": size}
    text = f"{settings.model} is complete: {size / 1e6:.0f} MB in {directory}"
    return Finding(name="Model", text=text, figures=figures)


def _failing(text: str, mend: str) -> Finding:
    return Finding(name="Model", status="error", text=text, mend=mend)


def _absent(source: Source) -> Finding:
    """Say that serve will do something first, and whether that needs a network."""
    figures: dict[str, object] = {"model": source.name, "kind": source.kind, "present": False}
    text, what = f"{source.name} is not on this machine yet", "fetches"
    if source.kind == "gguf":
        text, what = f"{source.name} has to be converted once", "converts"
    mend = f"nothing has to be done: serve {what} it first; or run pharos pull {source.name}"
    return Finding(name="Model", status="note", text=text, mend=mend, figures=figures)


def _load_problem(directory: Path, settings: Settings) -> str:
    """Return why mlx-lm would not load the model; empty also where that cannot be found out."""
    command = [sys.executable, "-P", "-m", "mlx_pharos.doctor.loadable", str(directory)]
    command += [settings.dequantize, settings.code_policy]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            command, capture_output=True, text=True, timeout=_CHECK_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout if done.returncode == 0 else ""  # the MLX finding says why it fails
