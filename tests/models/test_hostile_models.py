"""Models that mean harm, or look like it: refused by name, and nothing in them ever runs."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_pharos.config import ConfigValidator, Settings, ValidationError
from mlx_pharos.engine.models.directory import inspect_directory
from mlx_pharos.engine.models.gguf import convert_into
from mlx_pharos.engine.models.gguf_header import read_header
from mlx_pharos.engine.models.loading import load_model
from mlx_pharos.engine.models.tensor_table import read_table
from mlx_pharos.resilience.errors import ModelError
from support.gguf_writer import write_tiny_gguf
from support.hostile_model import (
    change_json,
    code_that_leaves,
    table_and_tensors,
    table_entry,
    write_armed_model,
)
from support.hub import write_hub_cache
from support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("named_in", ["model_file", "auto_map", "tokenizer", "nothing"])
def test_a_model_with_code_is_refused_and_its_code_never_runs(
    tmp_path: Path, named_in: str
) -> None:
    """Whoever names it, code beside a model is refused by its file's name before anything runs."""
    canary = tmp_path / "canary"
    directory = write_armed_model(tmp_path / "model", canary, named_in=named_in)
    with pytest.raises(ModelError, match=r"evil\.py|for the tokenizer"):
        load_model(directory)
    with pytest.raises(ValidationError, match="trust_remote_code"):
        ConfigValidator().validate_model_path(directory)
    assert not canary.exists()


@pytest.mark.parametrize("named_in", ["auto_map", "nothing"])
def test_a_model_is_served_without_its_code_where_that_is_allowed(
    tmp_path: Path, named_in: str
) -> None:
    """With ignore_model_code, mlx-lm's own code loads the model and the model's stays unread."""
    canary = tmp_path / "canary"
    directory = write_armed_model(tmp_path / "model", canary, named_in=named_in)
    validator = ConfigValidator(Settings(ignore_model_code=True))
    assert validator.validate_model_path(directory).kind == "directory"
    loaded = load_model(directory, code="ignore")
    assert loaded.tokenizer.encode("a") == [ord("a")]
    assert not canary.exists()


@pytest.mark.parametrize("named_in", ["model_file", "tokenizer"])
def test_code_that_is_needed_is_not_ignored(tmp_path: Path, named_in: str) -> None:
    """A model that cannot be built without its code is refused also where code is ignored."""
    directory = write_armed_model(tmp_path / "model", tmp_path / "canary", named_in=named_in)
    with pytest.raises(ModelError, match="needs code of its own"):
        load_model(directory, code="ignore")
    assert not (tmp_path / "canary").exists()


def test_serve_in_the_models_own_folder_runs_none_of_its_modules(tmp_path: Path) -> None:
    """Files named like Python's own modules are not imported by any of the server's processes."""
    canary = tmp_path / "canary"
    directory = write_armed_model(tmp_path / "model", canary, named_in="nothing")
    for name in ("json", "socket", "mlx", "jinja2", "tokenizers", "sitecustomize"):
        (directory / f"{name}.py").write_text(code_that_leaves(canary))
    for command in (["serve", "--port", "0"], ["doctor"], ["pull"]):
        target = ["."] if command == ["pull"] else ["--model", "."]
        done = subprocess.run(
            [sys.executable, "-P", "-m", "mlx_pharos", *command, *target],
            capture_output=True,
            text=True,
            timeout=18,
            check=False,
            cwd=directory,
        )
        assert "Traceback" not in done.stderr
        if command[0] != "pull":
            assert "evil.py" in done.stdout + done.stderr
    assert not canary.exists()


def test_pickles_are_neither_loaded_nor_named_astable_and_tensors(tmp_path: Path) -> None:
    """A .bin beside safetensors is never opened; alone it is refused, because reading it runs it."""
    directory = write_tiny_model(tmp_path / "model")
    # The pickle of a call of os.mkdir.
    pickled = f"cposix\nmkdir\n(V{tmp_path / 'canary'}\ntR.".encode()
    for name in ("pytorch_model.bin", "model.pt"):
        (directory / name).write_bytes(pickled)
    assert load_model(directory).vocabulary_size == 260
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"mlx_lm\.convert"):
        load_model(directory)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "extra"])
def test_a_link_out_of_the_model_is_refused(tmp_path: Path, name: str) -> None:
    """A link to a file elsewhere, and one to nothing, are named; a link inside the model is fine."""
    directory = write_tiny_model(tmp_path / "model")
    outside = tmp_path / "outside"
    path = directory / name
    path.replace(outside) if path.exists() else outside.write_text("secret")
    path.symlink_to(outside)
    with pytest.raises(ModelError, match=rf"{name} is a link out of the model, to .*outside"):
        inspect_directory(directory)
    outside.unlink()
    with pytest.raises(ValidationError, match=rf"{name} is a link to nothing|no config"):
        ConfigValidator().validate_model_path(directory)


def test_links_of_the_hubs_cache_are_its_own_affair(tmp_path: Path, tiny_model: Path) -> None:
    """A snapshot links to the blobs of its repository, and to no other's."""
    snapshot = write_hub_cache(tmp_path, "org/name", tiny_model)
    inspect_directory(snapshot)
    other = write_hub_cache(tmp_path, "org/other", tiny_model)
    target = (other / "config.json").resolve()
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(target)
    with pytest.raises(ModelError, match=r"config\.json is a link out of the model"):
        inspect_directory(snapshot)


def test_a_link_inside_and_a_linked_model_are_fine(tmp_path: Path) -> None:
    """What the operator names may itself be a link."""
    directory = write_tiny_model(tmp_path / "model")
    (directory / "model.safetensors").rename(directory / "weights")
    (directory / "model.safetensors").symlink_to("weights")
    (tmp_path / "link").symlink_to(directory)
    assert ConfigValidator().validate_model_path(tmp_path / "link").path == directory


def test_a_pipe_in_place_of_a_file_is_no_wait(tmp_path: Path) -> None:
    """What is neither file nor folder is refused at once: opening it would wait for ever."""
    directory = write_tiny_model(tmp_path / "model")
    (directory / "tokenizer.json").unlink()
    os.mkfifo(directory / "tokenizer.json")
    with pytest.raises(ModelError, match=r"tokenizer\.json is neither a file nor a folder"):
        inspect_directory(directory)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "too short"),
        (table_and_tensors({}, length=2**63), "longer than the file"),
        (table_and_tensors(b"[" * 100_000), "cannot be read"),
        (table_and_tensors(b'{"a": 0, "a": 1}'), "name twice"),
        (table_and_tensors(b"[]"), "cannot be read"),
        (table_and_tensors({"a": 1}), "'a' has no type, shape and place"),
        (table_and_tensors({"a": table_entry([1], 0, 4) | {"dtype": None}}, b"1234"), "no type"),
        (table_and_tensors({"a": table_entry([-1], 0, 4)}, b"1234"), "no type, shape"),
        (table_and_tensors({"a": table_entry([True], 0, 4)}, b"1234"), "no type, shape"),
        (table_and_tensors({"a": table_entry([1.0], 0, 4)}, b"1234"), "no type, shape"),
        (
            table_and_tensors({"a": table_entry([1], 0, 4, "F1024")}, b"1234"),
            "unknown type, 'F1024'",
        ),
        (table_and_tensors({"a": table_entry([1000], 0, 4)}, b"1234"), "does not take the bytes"),
        (table_and_tensors({"a": table_entry([0, 2**40], 0, 0)}), "larger than any can be"),
        (table_and_tensors({"a": table_entry([1], 4, 8)}, b"12345678"), "leaves a gap"),
        (
            table_and_tensors({"a": table_entry([1], 0, 4), "b": table_entry([1], 0, 4)}, b"1234"),
            "'b' overlaps another",
        ),
        (
            table_and_tensors({"a": table_entry([1], 0, 4)}, b"123"),
            "has 72 bytes where .* asks for 73",
        ),
        (
            table_and_tensors({"a": table_entry([1], 0, 4)}, b"12345"),
            "has 74 bytes where .* asks for 73",
        ),
    ],
)
def test_tensors_that_are_not_where_they_should_be_are_named(
    tmp_path: Path, content: bytes, said: str
) -> None:
    """A table that points beside, over or behind the tensors is damaged, and the file is named."""
    directory = write_tiny_model(tmp_path)
    (directory / "model.safetensors").write_bytes(content)
    with pytest.raises(ValidationError, match=rf"model\.safetensors is damaged.*{said}"):
        ConfigValidator().validate_model_path(directory)


def test_a_table_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    """A file that is one great table is refused by its length, without reading it."""
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**33))
        file.truncate(2**33 + 8)  # takes no room on the disk
    with pytest.raises(ModelError, match="more than any model's"):
        read_table(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_of_a_table_is_an_error_in_words(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever byte of the head is changed, the table is still true to the file or refused."""
    path = tmp_path / "model.safetensors"
    content = bytearray(
        table_and_tensors({"a": table_entry([2], 0, 8), "b": table_entry([1], 8, 12)}, b"x" * 12)
    )
    for place in data.draw(st.lists(st.integers(0, len(content) - 13), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        table = read_table(path)
    except ModelError:
        return
    assert sum(b - a for a, b in (each["data_offsets"] for each in table.values())) == 12


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_of_a_gguf_header_is_an_error_in_words(
    tmp_path: Path, data: st.DataObject
) -> None:
    """Whatever is changed in the header of a .gguf file, reading it ends, with or without an error."""
    path = tmp_path / "m.gguf"
    if not path.exists():
        write_tiny_gguf(path)
    whole = path.read_bytes()
    content = bytearray(whole)
    for place in data.draw(st.lists(st.integers(4, 4000), min_size=1, max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(content)
    try:
        read_header(damaged)
    except ModelError:
        return
    assert content[:4] == b"GGUF"


@pytest.mark.parametrize(
    ("tensors", "entries"), [(2**63, 0), (0, 2**63), (2**24, 0), (0, 2**24), (2**64 - 1, 2**64 - 1)]
)
def test_absurd_counts_of_a_gguf_are_refused(tmp_path: Path, tensors: int, entries: int) -> None:
    """A header that promises more than the file can hold ends at once."""
    path = tmp_path / "m.gguf"
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, tensors, entries) + b"\0" * 64)
    with pytest.raises(ValidationError, match=r"m\.gguf is damaged"):
        ConfigValidator().validate_model_path(path)


@pytest.mark.parametrize("alignment", [0, 2**31, "wide"])
def test_an_absurd_alignment_of_a_gguf_is_refused(tmp_path: Path, alignment: Any) -> None:
    """The place of the weights is computed from sane numbers alone."""
    path = tmp_path / "m.gguf"
    write_tiny_gguf(path, metadata={"general.alignment": alignment})
    with pytest.raises(ModelError, match=r"m\.gguf is damaged"):
        read_header(path)


def _deep(directory: Path) -> None:
    (directory / "config.json").write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")


def _huge(directory: Path) -> None:
    with (directory / "config.json").open("r+b") as file:
        file.truncate(1 << 30)


def _endless(directory: Path) -> None:
    change_json(directory / "config.json", num_hidden_layers=10**9)


def _odd_quantization(directory: Path) -> None:
    change_json(directory / "config.json", quantization=[32, 4])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_deep, r"config\.json is damaged: it is not valid JSON"),
        (_huge, r"config\.json is damaged: it is larger"),
        (_endless, "num_hidden_layers is 1000000000"),
        (_odd_quantization, "weights failed"),
    ],
)
def test_a_hostile_config_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    """Deep, huge and endless configs end in a sentence, not in a crash or a wait."""
    directory = write_tiny_model(tmp_path)
    damage(directory)
    with pytest.raises(ModelError, match=said):
        load_model(directory)


@pytest.mark.parametrize("end", ["x", [["a"]], 2**70, -1, True, [1.5]])
def test_an_end_that_is_no_token_is_refused(tmp_path: Path, end: Any) -> None:
    """The tokens that end an answer are numbers of tokens, whichever file names them."""
    directory = write_tiny_model(tmp_path, generation={"eos_token_id": end})
    with pytest.raises(ModelError, match="eos_token_id is no token's number"):
        load_model(directory)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300, -1, True, "0.5", 2**70])
def test_a_recommendation_that_no_request_could_ask_for_is_none(tmp_path: Path, value: Any) -> None:
    """Sampling by not-a-number would be noise for every request that names nothing else."""
    advice = {"temperature": value, "top_p": value, "top_k": value}
    defaults = load_model(write_tiny_model(tmp_path, generation=advice)).generation_defaults
    assert (None, None, None) == (defaults.temperature, defaults.top_p, defaults.top_k)


def test_a_context_that_no_machine_could_hold_is_not_believed(tmp_path: Path) -> None:
    """The window is then the tokenizer's, or a small one."""
    directory = write_tiny_model(tmp_path)
    change_json(directory / "config.json", max_position_embeddings=2**70)
    assert load_model(directory).context_length == 8192


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "tokenizer.model"])
def test_a_file_that_would_be_read_whole_has_a_bound(tmp_path: Path, name: str) -> None:
    """A file of text that would fill the memory is refused by its size."""
    directory = write_tiny_model(tmp_path)
    with (directory / name).open("ab") as file:
        file.truncate(1 << 33)
    with pytest.raises(ModelError, match=rf"{name} is damaged: it is larger"):
        inspect_directory(directory)


@pytest.mark.parametrize(
    "damage",
    [
        '{"model": {"type": "BPE", "vocab": {}, "merges": ["a"]}}',
        "[" * 100_000,
        '{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "b"}}',
        "\x00" * 100,
    ],
)
def test_a_damaged_tokenizer_is_a_sentence(tmp_path: Path, damage: str) -> None:
    """Whatever a tokenizer's library makes of a damaged file, the operator gets a sentence."""
    directory = write_tiny_model(tmp_path)
    (directory / "tokenizer.json").write_text(damage)
    with pytest.raises(ModelError, match="tokenizer"):
        load_model(directory)


@pytest.mark.parametrize(
    "metadata",
    [
        {"llama.embedding_length": "wide"},
        {"llama.attention.head_count": 0},
        {"tokenizer.ggml.bos_token_id": 2**31, "tokenizer.ggml.add_bos_token": True},
        {"tokenizer.ggml.tokens": [1, 2]},
        {"tokenizer.ggml.merges": [0]},
        {"tokenizer.ggml.tokens": ["a" * 5000] * 260},
    ],
)
def test_metadata_of_the_wrong_types_are_damage(tmp_path: Path, metadata: dict[str, Any]) -> None:
    """A conversion that trips over what a .gguf file says ends in a sentence, not in a traceback."""
    path = tmp_path / "m.gguf"
    write_tiny_gguf(path, metadata=metadata)
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=r"damaged|no vocabulary"):
        convert_into(path, tmp_path / "out")
