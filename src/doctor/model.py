"""Whether the configured model is there, whole, and of a kind that can be served."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..engine.models.source import classify, resolve_local
from ..engine.models.store import MANIFEST, Store
from ..resilience.errors import ModelError
from .finding import Finding

if TYPE_CHECKING:
    from ..settings import Settings

__all__ = ["check_model"]

_MIB = 1024**2


def check_model(settings: Settings) -> Finding:
    """Find the model's files, and compare what Pharos wrote itself with its checksums."""
    store = Store(settings.cache_dir)
    try:
        source = classify(settings.model)
        directory = resolve_local(source, store)
        if directory is not None and (directory / MANIFEST).is_file():
            store.verify(directory)
    except ModelError as error:
        mend = "name another model: --model M, or delete the damaged one and run pharos pull"
        return Finding(name="Model", status="error", text=error.message, mend=mend)
    figures: dict[str, object] = {"model": settings.model, "kind": source.kind}
    if directory is None:
        mend = (
            f"nothing has to be done: serve fetches it first; or run pharos pull {settings.model}"
        )
        text = f"{settings.model} is not on this machine yet"
        figures["present"] = False
        return Finding(name="Model", status="note", text=text, mend=mend, figures=figures)
    size = sum(path.stat().st_size for path in directory.iterdir() if path.is_file())
    figures |= {"present": True, "directory": str(directory), "bytes": size}
    text = f"{settings.model} is complete: {size / _MIB:.0f} MiB in {directory}"
    return Finding(name="Model", text=text, figures=figures)
