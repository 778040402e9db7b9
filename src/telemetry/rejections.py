"""What a collector says that it did not keep of what it was sent."""

from __future__ import annotations

__all__ = ["Rejections"]


class Rejections:
    """Between the answers to one exporter and its queue, within one export.

    Not safe from several threads at once: the queues export one batch at a time.
    """

    def __init__(self) -> None:
        self._count = 0
        self._words = ""

    def note(self, count: int, words: str) -> None:
        """Add items to those that were rejected.

        Args:
            count: As the collector says; it may be more than was sent.
            words: The collector's, for the log. May be empty.
        """
        self._count += count
        self._words = words

    def take(self) -> tuple[int, str]:
        """Return the sum and the last words, and begin anew."""
        taken = self._count, self._words
        self._count, self._words = 0, ""
        return taken
