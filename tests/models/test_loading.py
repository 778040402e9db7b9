"""A model directory loads with the facts about it right, or is refused with the reason."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_pharos.engine.models import loading
from mlx_pharos.engine.models.loading import load_model
from mlx_pharos.resilience.errors import ModelError
from support.tiny_model import EOS, VOCABULARY, write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

on_cpu = pytest.mark.skipif(mx.default_device() != mx.cpu, reason="expansion is for the CPU")


def _logits(loaded: loading.LoadedModel) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(loaded.model(mx.array([[1, 2, 3, 40, 50]])).astype(mx.float32))


def test_facts_about_the_model(tiny_model: Path) -> None:
    """Window, vocabulary, template, end tokens and types are those of the files."""
    loaded = load_model(tiny_model)

    assert 8192 == loaded.context_length
    assert VOCABULARY == loaded.vocabulary_size
    assert loaded.has_chat_template
    assert loaded.batchable
    assert "float32" == loaded.dtype or loaded.device == "gpu"
    assert frozenset({EOS}) == loaded.eos_token_ids
    assert loaded.load_seconds > 0


def test_context_window_is_bounded_by_the_setting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The operator can shorten the window; who wants to lengthen it gets a warning."""
    directory = write_tiny_model(tmp_path, context_length=500)

    assert 500 == load_model(directory).context_length
    assert 100 == load_model(directory, context_length=100).context_length
    assert 500 == load_model(directory, context_length=10_000).context_length
    assert "context_length is 10000, and this model's own is 500" in caplog.text


def test_recommended_sampling_is_read(tmp_path: Path) -> None:
    """Numbers of generation_config.json are taken; what is no number is none."""
    recommended = {"temperature": 0.6, "top_p": "high", "top_k": 20}
    loaded = load_model(write_tiny_model(tmp_path, generation=recommended))

    assert loading.GenerationDefaults(0.6, None, 20) == loaded.generation_defaults


@on_cpu
@pytest.mark.parametrize(("bits", "half"), [(4, False), (4, True), (8, True), (0, True)])
def test_expanded_weights_compute_the_same(tmp_path: Path, bits: Any, half: bool) -> None:
    """Quantized and half models become float32 on the CPU, with the same logits."""
    directory = write_tiny_model(tmp_path, bits=bits, half=half)

    stored = load_model(directory, dequantize="off")
    expanded = load_model(directory, dequantize="auto")

    assert "float32" == expanded.dtype
    assert "expanded to float32" in expanded.expansion
    assert "switched off" in stored.expansion
    types = {array.dtype for array in _parameters(expanded)}
    assert {mx.float32} == types
    tolerance = 1.0 if half else 1e-3  # of logits around 40, computed in float16
    np.testing.assert_allclose(_logits(expanded), _logits(stored), rtol=0, atol=tolerance)


def _parameters(loaded: loading.LoadedModel) -> list[Any]:
    from mlx.utils import tree_flatten

    pairs: list[tuple[str, Any]] = tree_flatten(loaded.model.parameters())  # type: ignore[assignment]
    return [array for _, array in pairs]


@on_cpu
def test_expansion_needs_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Auto leaves the weights as they are where memory is short; on, and the model itself, refuse."""
    directory = write_tiny_model(tmp_path, bits=4)
    stored = (directory / "model.safetensors").stat().st_size

    monkeypatch.setattr(loading, "available_memory", lambda: 2 * stored)
    assert "more than half" in load_model(directory, dequantize="auto").expansion
    with pytest.raises(ModelError, match="Expanded to float32"):
        load_model(directory, dequantize="on")
    monkeypatch.setattr(loading, "available_memory", lambda: stored // 2)
    with pytest.raises(ModelError, match="of memory are free"):
        load_model(directory, dequantize="off")


def test_code_of_a_model_runs_only_where_it_is_trusted(tmp_path: Path) -> None:
    """A model_file is refused by name, and with trust gives a model that cannot be batched."""
    directory = write_tiny_model(tmp_path, batchable=False)

    with pytest.raises(ModelError, match=r"unbatchable\.py.*trust_remote_code"):
        load_model(directory)
    assert not load_model(directory, code="run").batchable


def test_code_of_a_tokenizer_runs_only_where_it_is_trusted(tmp_path: Path) -> None:
    """A tokenizer that names a class of its own is refused before it is imported."""
    directory = write_tiny_model(tmp_path)
    (directory / "evil.py").write_text("raise SystemExit('it ran')")
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["auto_map"] = {"AutoTokenizer": [None, "evil.Tokenizer"]}
    path.write_text(json.dumps(config))

    with pytest.raises(ModelError, match="code of its own for the tokenizer"):
        load_model(directory)


def _without(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def _config(**changes: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def _text(name: str, text: str) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        (directory / name).write_text(text)

    return write


def _cut(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_without("config.json"), "config.json cannot be read"),
        (_text("config.json", "{"), "config.json is damaged"),
        (_text("config.json", "[]"), "holds no JSON object"),
        (_config(model_type="quantum"), "'quantum' is not supported"),
        (_config(model_type=None), "names no model_type"),
        (_config(model_type="../../evil"), "names no model_type"),
        (_config(hidden_size=128), "weights failed"),
        (_config(num_hidden_layers="two"), "weights failed"),
        (_without("model.safetensors"), r"no model\*\.safetensors"),
        (_cut, "model.safetensors is damaged: it has"),
        (_text("model.safetensors", "short"), "model.safetensors is damaged"),
        (_text("model.safetensors", "x" * 100), "model.safetensors is damaged"),
        (
            _text("model.safetensors.index.json", '{"weight_map": {"a": "model-2.safetensors"}}'),
            "model-2.safetensors is missing",
        ),
        (_without("tokenizer.json"), "holds no tokenizer"),
        (_text("tokenizer.json", "{}"), "tokenizer failed"),
        (_text("generation_config.json", "{"), "generation_config.json is damaged"),
    ],
)
def test_each_fault_is_said(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    """A damaged or foreign directory ends in an error for the operator that says where it lies."""
    directory = write_tiny_model(tmp_path)
    damage(directory)

    with pytest.raises(ModelError, match=said):
        load_model(directory)


def test_open_files_stay_as_many_as_before() -> None:
    """Importing mlx-lm through this module leaves the process its limit of open files."""
    if 0 <= resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 4096:
        pytest.skip("mlx-lm cannot be imported where the hard limit is below its own")
    code = (
        "import resource as r; _, hard = r.getrlimit(r.RLIMIT_NOFILE);"
        "r.setrlimit(r.RLIMIT_NOFILE, (3000, hard));"
        "import mlx_pharos.engine.models.loading; print(*r.getrlimit(r.RLIMIT_NOFILE))"
    )

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "3000" == said.stdout.split()[0]
