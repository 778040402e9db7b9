"""The examples of the documentation, run as they stand there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.served import Served

ROOT = Path(__file__).parents[2]


def _blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/how-to/openai-client.md"])
def test_python_examples_run(page: str, served: Served) -> None:
    """The Python examples of a page run one after the other, and print an answer."""
    code = "\n".join(_blocks(page, "python")).replace("127.0.0.1:8080", served.address)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=18, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial/first-steps.md"])
def test_curl_examples_get_what_the_page_says(page: str, served: Served) -> None:
    """Each curl example gets an answer, a stream where it asks for one, or the error it is about."""
    examples = [block for block in _blocks(page, "sh") if block.startswith("curl")]
    assert examples
    for example in examples:
        command = example.replace("127.0.0.1:8080", served.address)
        output = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, timeout=18, check=True
        ).stdout
        if '"stream": true' in example:
            assert output.endswith("data: [DONE]\n\n")
        elif "temprature" in example:
            assert json.loads(output)["error"]["param"] == "temprature"
        elif example.endswith("/health\n"):
            assert "running" in json.loads(output)
        else:
            assert json.loads(output)["choices"][0]["message"]["role"] == "assistant"
