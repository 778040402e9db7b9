"""The tiny model keeps the promises that other tests build on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from mlx_lm import stream_generate
from mlx_lm.sample_utils import make_sampler
from mlx_lm.utils import load

from support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from pathlib import Path


def test_same_seed_gives_the_same_files(tmp_path: Path, tiny_model: Path) -> None:
    """The files are equal byte for byte, so recorded answers stay right."""
    again = write_tiny_model(tmp_path)

    assert {path.name: path.read_bytes() for path in tiny_model.iterdir()} == {
        path.name: path.read_bytes() for path in again.iterdir()
    }


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_text_is_long_varied_and_valid(tiny_model: Path, temperature: float) -> None:
    """500 tokens come without an end, without a stray byte, and do not stand still."""
    model, tokenizer = load(str(tiny_model))[:2]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True
    )

    chunks = list(
        stream_generate(model, tokenizer, prompt, max_tokens=500, sampler=make_sampler(temperature))
    )

    text = "".join(chunk.text for chunk in chunks)
    assert "length" == chunks[-1].finish_reason
    assert "BPEStreamingDetokenizer" == type(tokenizer.detokenizer).__name__
    assert all(letter == "\n" or letter.isprintable() for letter in text.removesuffix("\ufffd"))
    assert len(set(text[-200:])) > 20
