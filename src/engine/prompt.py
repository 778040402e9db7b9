"""What a request asks of the engine: a prompt, and how tokens are drawn after it."""

from __future__ import annotations

from .wire import Message, Value

__all__ = ["ChatMessage", "ChatPrompt", "Prompt", "Sampling", "TextPrompt", "TokenPrompt"]


class ChatMessage(Value, frozen=True):
    """One message of a conversation. ``content`` is the text, parts already joined."""

    role: str
    content: str
    name: str | None = None


class ChatPrompt(Message, frozen=True):
    """A conversation, rendered with the model's chat template in the engine."""

    messages: tuple[ChatMessage, ...]


class TextPrompt(Message, frozen=True):
    """Raw text, tokenized with the model's special tokens and no template."""

    text: str


class TokenPrompt(Message, frozen=True):
    """Token ids, used as they are."""

    tokens: tuple[int, ...]


Prompt = ChatPrompt | TextPrompt | TokenPrompt


class Sampling(Value, frozen=True):
    """How the next token is drawn from the logits.

    The order is that of mlx-lm: bias, penalties, then top-p, min-p and top-k
    filters, then temperature.
    """

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is off."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens of prompt and answer (CTRL)."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of each token of the answer so far."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a token once per occurrence in the answer so far."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of token id and the number added to its logit."""
    seed: int = 0
    """Seed of the request's own random stream; the server always sends one (64 bits, unsigned)."""
