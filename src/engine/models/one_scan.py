"""Imports ``transformers`` with one look through its files instead of two.

``transformers`` reads all its modules of models, more than a thousand, to learn what each
exports: once for itself and once for its package ``models``. The cache that should save the
second look holds 128 of them. It is a fifth of what an engine takes to start.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["import_transformers"]

_PREFIX = "models"


def import_transformers() -> None:
    """Import what of ``transformers`` loads tokenizers. It does not import mlx."""
    import transformers  # noqa: PLC0415 - takes a second, which only an engine has to spend
    from transformers.utils import import_utils as found  # noqa: PLC0415

    import_utils: Any = found
    package = Path(transformers.__file__).parent / _PREFIX
    look = getattr(import_utils, "define_import_structure", None)
    if look is not None:  # a later version may do without
        import_utils.define_import_structure = _once(look, package)
    try:
        from transformers import AutoTokenizer  # noqa: F401, PLC0415
    finally:
        if look is not None:
            import_utils.define_import_structure = look


def _once(look: Callable[..., Any], package: Path) -> Callable[..., Any]:
    """Return ``look``, which answers for ``package`` from what it found there before."""

    def answer(path: str, prefix: str | None = None) -> Any:  # noqa: ANN401 - the library's
        if prefix is None and Path(path) == package / "__init__.py":
            # Of a form that is not the known one the library makes the best by itself.
            with contextlib.suppress(AttributeError, TypeError):
                return _without_prefix(look(package, prefix=_PREFIX))
        return look(path, prefix)

    return answer


def _without_prefix(
    found: Mapping[frozenset[str], Mapping[str, set[str]]],
) -> dict[frozenset[str], dict[str, set[str]]]:
    """Return what is exported by module, the modules named from within their package."""
    inside = f"{_PREFIX}."
    return {
        needs: {
            # The library adds its other modules to what it found.
            name.removeprefix(inside): names
            for name, names in modules.items()
            if name.startswith(inside)
        }
        for needs, modules in found.items()
    }
