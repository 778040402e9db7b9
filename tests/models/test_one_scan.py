"""What an engine imports first: the same as by itself, with each file looked at once."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import collections, sys
opened = collections.Counter()
def hear(event, arguments):
    if event == "open" and "/transformers/models/" in str(arguments[0]):
        opened[str(arguments[0])] += 1
sys.addaudithook(hear)

from mlx_pharos.engine.models.one_scan import import_transformers
import_transformers()
looked_at = {path: times for path, times in opened.items() if path.endswith(".py")}
assert len(looked_at) > 500, len(looked_at)
# Packages that are really imported look at their own files again.
again = [path for path, times in looked_at.items() if times > 1]
assert len(again) < 50, again

from transformers import models
from transformers.utils import import_utils
by_itself = import_utils._LazyModule(
    models.__name__, models.__file__, import_utils.define_import_structure(models.__file__)
)
assert len(by_itself.__all__) > 1000, len(by_itself.__all__)
assert models.__all__ == by_itself.__all__, set(models.__all__) ^ set(by_itself.__all__)
assert models._class_to_module == by_itself._class_to_module
assert models._modules == by_itself._modules
assert "mlx" not in sys.modules
"""


def test_transformers_is_looked_through_once_and_exports_what_it_does_by_itself() -> None:
    """In a process of its own, which imports it for the first time."""
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False, timeout=45
    )
    assert ended.returncode == 0, ended.stderr
