"""The project's own files agree with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import mlx_pharos

ROOT = Path(__file__).parents[2]
PINNED = re.compile(r"^([a-z0-9-]+)==(\S+)", re.MULTILINE)


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_packages_are_the_folders() -> None:
    """The packages that are built are exactly the folders of src that hold Python."""
    folders = {each.parent.relative_to(ROOT / "src") for each in (ROOT / "src").rglob("*.py")}
    expected = sorted(".".join(("mlx_pharos", *folder.parts)) for folder in folders)
    assert expected == _project()["tool"]["setuptools"]["packages"]


def test_the_typing_mark_is_installed() -> None:
    """The installed package tells type checkers that it is annotated."""
    assert (Path(mlx_pharos.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("name", ["runtime.txt", "cuda.txt", "dev.txt", "deploy.txt"])
def test_pins_have_hashes_and_no_address(name: str) -> None:
    """Every pinned requirement has a hash, and the file names no package index."""
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    blocks = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)
    pinned = [block for block in blocks if PINNED.match(block)]
    assert len(pinned) > 10
    assert all("--hash=sha256:" in block for block in pinned)
    assert "://" not in text
    assert not re.search(r"^-|index-url|find-links", text, flags=re.MULTILINE)


def test_every_dependency_is_pinned() -> None:
    """What pyproject.toml asks for is pinned for serving, and what serves is pinned for tests."""
    names = {
        re.match(r"[a-z0-9-]+", line)[0]  # type: ignore[index]
        for line in _project()["project"]["dependencies"]
    }
    runtime = dict(PINNED.findall((ROOT / "requirements/runtime.txt").read_text(encoding="utf-8")))
    dev = dict(PINNED.findall((ROOT / "requirements/dev.txt").read_text(encoding="utf-8")))
    assert names <= runtime.keys()
    assert runtime.items() <= dev.items()


def test_cuda_is_the_same_with_another_backend() -> None:
    """The file for NVIDIA has what serving has, at the same versions, and CUDA for the CPU's part."""
    texts = {
        name: (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
        for name in ("runtime", "cuda")
    }
    runtime, cuda = (dict(PINNED.findall(text)) for text in texts.values())
    assert {"mlx-cpu"} == runtime.keys() - cuda.keys()
    assert all(re.match(r"mlx-cuda|nvidia-", name) for name in cuda.keys() - runtime.keys())
    assert runtime.items() - {("mlx-cpu", runtime["mlx-cpu"])} <= cuda.items()


def test_nothing_of_cuda_is_pinned() -> None:
    """The pinned files serve the CPU and Metal: no CUDA package is downloaded for them."""
    text = (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8")
    assert not re.search(r"^(nvidia|mlx-cuda)", text, flags=re.MULTILINE)
    assert {"mlx-cpu", "mlx-metal"} <= dict(PINNED.findall(text)).keys()
