"""From a prompt to token ids, off the MLX thread.

A long prompt takes seconds to tokenize; the tokenizer library lets go of the
GIL meanwhile, so decoding goes on beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from ...resilience.errors import ModelError
from ..protocol import ChatMessage, ChatPrompt, TextPrompt, TokenPrompt
from .time_limit import TimeLimitError, run_within

if TYPE_CHECKING:
    from ..protocol import Prompt, RejectionCode

__all__ = ["PromptEncoder", "PromptError"]


_TEMPLATE_SECONDS = 10.0
"""A conversation of megabytes is rendered in a tenth of a second."""


class PromptError(Exception):
    """The model cannot take this prompt, or what comes with it."""

    def __init__(self, code: RejectionCode) -> None:
        super().__init__(code)
        self.code = code


class PromptEncoder:
    """Renders chat templates and encodes text. Safe from several threads at once."""

    def __init__(self, tokenizer: Any, *, vocabulary_size: int) -> None:  # noqa: ANN401
        """Take mlx-lm's tokenizer wrapper and the number of ids that the model knows."""
        self._tokenizer = tokenizer
        self._vocabulary_size = vocabulary_size
        self._backend = _plain_backend(tokenizer)

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the prompt's token ids.

        Raises:
            PromptError: There is no chat template, it refuses the conversation,
                the prompt is empty, or an id is outside of the vocabulary.
            MemoryError: The process gets no more memory.
        """
        match prompt:
            case ChatPrompt():
                tokens = self._encode_text(self._render(prompt), special=False)
            case TextPrompt():
                tokens = self._encode_text(prompt.text, special=True)
            case TokenPrompt():
                tokens = list(prompt.tokens)
                if any(not 0 <= token < self._vocabulary_size for token in tokens):
                    raise PromptError("bad_token")
        if not tokens:
            raise PromptError("empty_prompt")
        return tokens

    def check_template(self) -> None:
        """Render a short conversation, which also compiles the template for the first request.

        Raises:
            ModelError: It does not end, so no request ever would. That it refuses this
                conversation is its right.
        """
        greeting = ChatPrompt((ChatMessage("user", "Hello"),))
        try:
            self._render(greeting)
        except PromptError as error:
            if isinstance(error.__cause__, TimeLimitError):
                raise ModelError(
                    f"The model's chat template does not end within {_TEMPLATE_SECONDS:g} s. "
                    "Correct it, or fetch the model again."
                ) from None

    def check_bias(self, bias: tuple[tuple[int, float], ...]) -> None:
        """Raise :class:`PromptError` for an id that the model does not have.

        mlx does not look at the bounds: it would write beside the logits.
        """
        if any(not 0 <= token < self._vocabulary_size for token, _ in bias):
            raise PromptError("bad_logit_bias")

    def decode(self, tokens: list[int]) -> str:
        """Return the text of a prompt, special tokens left out."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _render(self, prompt: ChatPrompt) -> str:
        if not self._tokenizer.has_chat_template:
            raise PromptError("no_chat_template")
        messages = []
        for message in prompt.messages:
            fields = {"role": message.role, "content": message.content}
            if message.name is not None:
                fields["name"] = message.name
            messages.append(fields)
        try:
            return run_within(_TEMPLATE_SECONDS, lambda: self._apply_template(messages))
        except MemoryError:
            raise  # not the template's doing
        except Exception as error:
            # Templates call raise_exception(), index and count as they like, and run into the
            # sandbox; the text of their errors is theirs, so only the fact is told.
            raise PromptError("bad_template") from error

    def _apply_template(self, messages: list[dict[str, str]]) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
        )

    def _encode_text(self, text: str, *, special: bool) -> list[int]:
        if self._backend is None:
            return list(self._tokenizer.encode(text, add_special_tokens=special))
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=special)
        return list(encoding.ids)


def _plain_backend(tokenizer: Any) -> Any:  # noqa: ANN401
    """Return the Rust tokenizer where calling it directly is the same as ``encode``.

    ``encode`` of ``transformers`` holds the GIL for hundreds of milliseconds on
    a long text, to build lists that nobody reads.
    """
    inner = tokenizer._tokenizer  # noqa: SLF001 - the wrapper has no accessor
    backend = getattr(inner, "backend_tokenizer", None)
    if backend is None or type(inner).encode is not PreTrainedTokenizerBase.encode:
        return None
    backend.no_truncation()
    backend.no_padding()
    return backend
