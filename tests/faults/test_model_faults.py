"""Faults of models: directories that mean harm are not served, and nothing in them ever runs."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.hostile_model import (
    change_json,
    code_that_leaves,
    table_and_tensors,
    table_entry,
    write_armed_model,
)
from support.patient import patient
from support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.examination import Examination
    from support.patient import Patient

pytestmark = pytest.mark.battery

_KEY = "sk-planted-0123456789abcdef"
_SECRET = "the operator's own notes"


def _code(named_in: str) -> Callable[[Path], None]:
    def arm(model: Path) -> None:
        write_armed_model(model, model.parent / "canary", named_in=named_in)

    return arm


def _pickle(model: Path) -> None:
    (model / "model.safetensors").unlink()
    pickled = f"cposix\nmkdir\n(V{model.parent / 'canary'}\ntR."
    (model / "pytorch_model.bin").write_bytes(pickled.encode())


def _link(model: Path) -> None:
    (model / "tokenizer_config.json").unlink()
    (model / "tokenizer_config.json").symlink_to(model.parent / "secret")


def _pipe(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    os.mkfifo(model / "tokenizer.json")


def _cut(model: Path) -> None:
    with (model / "model.safetensors").open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) - 1000)


def _long(model: Path) -> None:
    with (model / "model.safetensors").open("ab") as file:
        file.write(b"x" * 1000)


def _beside(model: Path) -> None:
    table = {"a": table_entry([1], 0, 4), "b": table_entry([1], 0, 4)}
    (model / "model.safetensors").write_bytes(table_and_tensors(table, b"1234"))


def _huge(model: Path) -> None:
    table = {"a": table_entry([2**40, 2**20], 0, 4)}
    (model / "model.safetensors").write_bytes(table_and_tensors(table, b"1234"))


def _all_table(model: Path) -> None:
    with (model / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 2**33))
        file.truncate(2**33 + 8)  # takes no room on the disk


def _endless(model: Path) -> None:
    change_json(model / "config.json", num_hidden_layers=10**9)


def _deep(model: Path) -> None:
    (model / "config.json").write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")


_DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "code of the model": (_code("model_file"), "evil.py"),
    "code in a map": (_code("auto_map"), "evil.py"),
    "code of the tokenizer": (_code("tokenizer"), "needs code of its own for the tokenizer"),
    "code that nobody names": (_code("nothing"), "evil.py"),
    "a pickle": (_pickle, "safetensors"),
    "a link out": (_link, "tokenizer_config.json is a link out of the model"),
    "a pipe": (_pipe, "tokenizer.json is neither a file nor a folder"),
    "cut tensors": (_cut, "model.safetensors is damaged"),
    "long tensors": (_long, "model.safetensors is damaged"),
    "tensors over each other": (_beside, "'b' overlaps another"),
    "huge tensors": (_huge, "model.safetensors is damaged"),
    "a table of gigabytes": (_all_table, "model.safetensors is damaged"),
    "endless layers": (_endless, "num_hidden_layers is 1000000000"),
    "a deep config": (_deep, "config.json is damaged"),
}


@pytest.mark.parametrize("name", _DAMAGES)
def test_a_hostile_model_is_not_served(tmp_path: Path, name: str) -> None:
    """The command ends by itself and names the file; no code ran, no secret is told."""
    damage, said = _DAMAGES[name]
    model = write_tiny_model(tmp_path / "model")
    (tmp_path / "secret").write_text(json.dumps({"chat_template": _SECRET}))
    damage(model)
    done = subprocess.run(
        [sys.executable, "-m", "mlx_pharos", "serve", "--model", str(model), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PHAROS_API_KEY": _KEY},
    )
    output = done.stdout + done.stderr
    assert done.returncode in {1, 2}
    assert said in output
    assert "Traceback" not in output
    assert _KEY not in output
    assert _SECRET not in output
    assert not (tmp_path / "canary").exists()


def test_a_model_that_turns_hostile(
    tmp_path: Path, examine: Callable[[Patient], Examination]
) -> None:
    """Somebody puts code into the directory of a model that is served, and the engine dies: the next
    one refuses it, the requests end in words, and the server with them.
    """
    model = write_tiny_model(tmp_path / "model")
    with patient(model, "--max-batch", "4", "--max-queue", "28", "--restart-limit", "1") as server:
        examination = examine(server)
        asks = examination.draw(8, tokens=400)
        with examination.load(asks, held=True, probe=False) as load:
            load.wait_for_text(20)
            (model / "evil.py").write_text(code_that_leaves(tmp_path / "canary"))
            change_json(model / "config.json", model_file="evil.py")
            server.engine.kill()
        assert 1 == server.wait(30)
        examination.judge_end(load, whole=False)
        # A short one may have ended before its engine did.
        assert {"engine_died"} == {reply.error for reply in load.replies if not reply.whole}
        assert any("evil.py" in line for line in server.log)
    assert not (tmp_path / "canary").exists()
