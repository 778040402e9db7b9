"""A model's name is understood, or refused with what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mlx_pharos.engine.models.source import classify, resolve_local
from mlx_pharos.engine.models.store import Store
from mlx_pharos.resilience.errors import ModelError
from support.gguf_writer import write_tiny_gguf
from support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from pathlib import Path


def test_each_kind_of_name(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Starter, directory, file and hub id are told apart; what exists here is a path."""
    monkeypatch.chdir(tmp_path)
    write_tiny_gguf(tmp_path / "m.gguf")
    write_tiny_model(tmp_path / "org" / "name")
    write_tiny_model(tmp_path / "starter")

    assert "starter" == classify("starter").kind
    assert tmp_path / "starter" == classify("./starter").path
    assert tiny_model == classify(str(tiny_model)).path
    assert "gguf" == classify("m.gguf").kind
    assert "directory" == classify("org/name").kind
    assert "hub" == classify("org/other-name.v2").kind


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere/at/all", "There is no model at"),
        ("/nowhere", "There is no model at"),
        ("./nowhere", "There is no model at"),
        ("nowhere.gguf", "There is no model at"),
        ("word", "is no model: name 'starter'"),
        ("startr", "did you mean starter"),
        ("Starter", "did you mean starter"),
        ("org/name with space", "is no model"),
        ("", "no config.json"),
        ("notes.txt", "only .gguf"),
        ("empty", "no config.json"),
        ("pytorch", "mlx_lm.convert"),
        ("not.gguf", "no GGUF file"),
    ],
)
def test_what_is_no_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    """Each wrong name is refused with a message that says what is wrong with it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "not.gguf").write_text("hello")
    (tmp_path / "empty").mkdir()
    write_tiny_model(tmp_path / "pytorch")
    (tmp_path / "pytorch" / "model.safetensors").rename(tmp_path / "pytorch" / "model.bin")

    with pytest.raises(ModelError, match=said):
        classify(name)


def test_only_what_is_here_is_local(tmp_path: Path, tiny_model: Path) -> None:
    """A directory is local at once; a file needs its conversion, the starter its pull."""
    store = Store(tmp_path / "cache")
    write_tiny_gguf(tmp_path / "m.gguf")

    assert tiny_model == resolve_local(classify(str(tiny_model)), store)
    assert resolve_local(classify(str(tmp_path / "m.gguf")), store) is None
    assert resolve_local(classify("starter"), store) is None
