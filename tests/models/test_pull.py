"""A model gets onto the machine without mlx in the process that serves."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from mlx_pharos.engine.models.pull import pull
from mlx_pharos.engine.models.source import classify
from mlx_pharos.engine.models.store import Store
from support.gguf_writer import write_tiny_gguf

if TYPE_CHECKING:
    from pathlib import Path

_ENSURE = """
import sys
from pathlib import Path
from mlx_pharos.engine.models.pull import ensure_local
from mlx_pharos.engine.models.store import Store
from mlx_pharos.resilience.errors import ModelError
try:
    print(ensure_local(sys.argv[2], Store(Path(sys.argv[1])), report=print))
except ModelError as error:
    print("failed:", error.message)
for name in ("mlx", "mlx_lm", "transformers", "huggingface_hub", "numpy"):
    assert name not in sys.modules, name
"""


def _ensure(store: Path, model: Path) -> tuple[list[str], str]:
    finished = subprocess.run(
        [sys.executable, "-c", _ENSURE, str(store), str(model)],
        capture_output=True,
        text=True,
        check=True,
    )
    return finished.stdout.splitlines(), finished.stderr


def test_the_server_pulls_without_importing_mlx(tmp_path: Path) -> None:
    """What is missing is made by another process; what is there is used at once."""
    write_tiny_gguf(tmp_path / "m.gguf")

    said, other = _ensure(tmp_path / "cache", tmp_path / "m.gguf")
    assert "has to be converted once" in said[0]
    assert "complete and verified" in other
    again, other = _ensure(tmp_path / "cache", tmp_path / "m.gguf")

    assert [said[-1]] == again
    assert "" == other


def test_the_server_hears_of_a_failed_pull(tmp_path: Path) -> None:
    """The other process says why, and the server gets an error of its own."""
    write_tiny_gguf(tmp_path / "m.gguf", metadata={"tokenizer.ggml.model": "bert"})

    said, other = _ensure(tmp_path / "cache", tmp_path / "m.gguf")

    assert "failed:" in said[-1]
    assert "'bert'" in other
    assert "Traceback" not in other


def test_a_directory_is_checked_and_left_alone(tmp_path: Path, tiny_model: Path) -> None:
    """Pulling a directory of one's own changes nothing and copies nothing."""
    said: list[str] = []

    result = pull(classify(str(tiny_model)), Store(tmp_path), report=said.append)

    assert result.was_complete
    assert tiny_model == result.directory
    assert "no checksums" in said[0]
