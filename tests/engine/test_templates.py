"""Chat templates come with the model: they are sandboxed, and they end."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

import pytest

from mlx_pharos.engine.models.loading import load_model
from mlx_pharos.engine.protocol import ChatMessage, ChatPrompt
from mlx_pharos.engine.worker import tokenizing
from mlx_pharos.engine.worker.time_limit import TimeLimitError, run_within
from mlx_pharos.engine.worker.tokenizing import PromptEncoder, PromptError
from mlx_pharos.resilience.errors import ModelError
from support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from pathlib import Path

_PROMPT = ChatPrompt((ChatMessage("user", "hi"),))
_ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def _encoder(directory: Path, template: str) -> PromptEncoder:
    write_tiny_model(directory)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    loaded = load_model(directory)
    return PromptEncoder(loaded.tokenizer, vocabulary_size=loaded.vocabulary_size)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ lipsum.__globals__ }}",
    ],
)
def test_a_template_stays_in_its_sandbox(tmp_path: Path, template: str) -> None:
    """What reaches for Python, files or the conversation itself is an error, or empty."""
    encoder = _encoder(tmp_path, template)
    encoder.check_template()
    with pytest.raises(PromptError, match=r"bad_template|empty_prompt"):
        encoder.encode(_PROMPT)


def test_a_template_that_does_not_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is refused when it is loaded, and a request would be too; then others run."""
    encoder = _encoder(
        tmp_path, "{% if messages[0].content != 'fine' %}" + _ENDLESS + "{% endif %}a"
    )
    monkeypatch.setattr(tokenizing, "_TEMPLATE_SECONDS", 0.3)
    with pytest.raises(ModelError, match="chat template does not end"):
        encoder.check_template()
    with pytest.raises(PromptError, match="bad_template"):
        encoder.encode(_PROMPT)
    monkeypatch.setattr(tokenizing, "_TEMPLATE_SECONDS", 60)
    assert [ord("a")] == encoder.encode(ChatPrompt((ChatMessage("user", "fine"),)))


def test_memory_that_is_missing_is_not_the_templates_fault(tmp_path: Path) -> None:
    """Whoever asks is told to come again, not that the conversation is wrong."""
    encoder = _encoder(
        tmp_path, "{% if messages[0].content == 'hi' %}{{ 'a' * 10**15 }}{% endif %}"
    )
    encoder.check_template()
    with pytest.raises(MemoryError):
        encoder.encode(_PROMPT)


def test_a_limit_never_reaches_beyond_its_work() -> None:
    """However close the end and the limit come together, the error is raised inside or never."""
    outcomes = []
    for attempt in range(400):
        seconds = attempt % 4 / 5000
        try:
            run_within(seconds, lambda: sum(range(attempt % 20 * 500)))  # noqa: B023 - called here
            outcomes.append("returned")
        except TimeLimitError:
            outcomes.append("ended")
    assert 400 == len(outcomes)
    assert 1 >= sum(each.name == "time-limit" for each in threading.enumerate())


def test_work_within_its_limit_is_not_touched() -> None:
    """What ends in time returns its result, and its own errors stay its own."""
    assert run_within(60, lambda: 1) == 1
    with pytest.raises(ZeroDivisionError):
        run_within(60, lambda: 1 / 0)
