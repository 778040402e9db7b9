"""From tokens to the text that a client may see: what a stop string cuts or holds back."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .vocabulary import TokenDecoder

__all__ = ["StopMatcher", "TextAssembler"]


class StopMatcher:
    """Looks for stop strings in a stream of text and holds back what could begin one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """Take more text.

        Returns:
            The text that is certain not to belong to a stop string, and whether
            a stop string was found. After that nothing may be fed any more.
        """
        if not self._stops:
            return text, False
        text = self._held + text
        found = [index for stop in self._stops if (index := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """Return what was held back, at the end of a sequence that met no stop string."""
        held, self._held = self._held, ""
        return held


class TextAssembler:
    """The text of one sequence. Used by one thread."""

    def __init__(
        self, decoder: TokenDecoder, stops: tuple[str, ...], *, strip_first_space: bool = False
    ) -> None:
        self._decoder = decoder
        self._matcher = StopMatcher(stops)
        self._strip_first_space = strip_first_space
        self.length = 0
        """Characters so far, held back ones included: the next token begins here, or goes on with the
        character that does."""

    def add(self, token: int) -> tuple[str, bool]:
        """Take a token; return the text to send and whether a stop string was met."""
        text = self._decoder.add(token)
        if self._strip_first_space and text:
            self._strip_first_space = False
            text = text.removeprefix(" ")
        self.length += len(text)
        return self._matcher.feed(text)

    def recall(self, tokens: Iterable[int]) -> None:
        """Take tokens whose text was sent by an engine before this one.

        What is held back of them, for a stop string or as a part of a character,
        is then the same here as it was there.
        """
        for token in tokens:
            self.add(token)

    def finish(self) -> tuple[str, bool]:
        """Return the rest: a cut character becomes U+FFFD, held back text is set free."""
        text, stopped = self._matcher.feed(self._decoder.finish())
        return (text, True) if stopped else (text + self._matcher.flush(), False)


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of ``text`` that begins ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
