"""The real backends; without them the tests here are skipped, or fail if they are required.

``make backends`` builds them; with ``REQUIRE_BACKENDS=1`` they have to be there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.backend import backend_program
from support.stack import Stack, stack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["running"]


@pytest.fixture(scope="session")
def running(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Run a server and its whole stack, which the tests share."""
    for name in ("otelcol-pharos", "jaeger", "victoria-logs", "prometheus", "alertmanager"):
        backend_program(name)
    with stack(tmp_path_factory.mktemp("stack"), tiny_model) as parts:
        yield parts
