"""Whether the installed mlx-lm would load a model: ``python -m mlx_pharos.doctor.loadable``.

In a process of its own, for the same reasons as the probe. Reads no weights.
Prints what is wrong, and nothing where nothing is.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..engine.models.loading import check_loadable
from ..resilience.errors import ModelError

if TYPE_CHECKING:
    from ..engine.models.loading import Dequantize
    from ..engine.models.model_code import CodePolicy

__all__ = ["main"]


def main(directory: str, dequantize: str, code: str) -> None:
    """Check the directory with the settings that bear on it."""
    try:
        check_loadable(
            Path(directory),
            dequantize=cast("Dequantize", dequantize),
            code=cast("CodePolicy", code),
        )
    except ModelError as error:
        sys.stdout.write(error.message)


if __name__ == "__main__":
    main(*sys.argv[1:])
