"""The memory ledger: what is promised to requests, and whether one more fits.

Arithmetic alone. What a token, a prefill chunk and a row of the batch cost is
measured when the model is loaded and comes in as :class:`MemoryCosts`; what
may be promised in all comes in as the limit.

A batch pads all its rows to the longest one, so the bytes of a request depend
on its company: the ledger prices the set of reservations, not each by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

__all__ = ["BLOCK", "PIECE", "LayerShape", "MemoryCosts", "MemoryLedger"]

BLOCK = 256
"""Tokens by which mlx-lm's KV caches grow, and reservations with them."""
PIECE = 256
"""Tokens that mlx-lm's state space models compute at a time."""
_LAYERS_IN_COPY = 2
"""Layers that exist twice at a time while a batch is copied to grow or to lose a row."""
_LONGEST = 1 << 24
"""Tokens; no context window is longer."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer keeps of one sequence."""

    token_bytes: int = 0
    """Keys and values of a token."""
    window: int = 0
    """Tokens that it keeps at most, 0 for all."""
    fixed_bytes: int = 0
    """State that does not depend on the length."""

    def row_bytes(self, tokens: int) -> int:
        """Return the bytes for a sequence of so many tokens: whole blocks."""
        blocks = -(-tokens // BLOCK)
        if self.window:
            blocks = min(blocks, -(-self.window // BLOCK))
        return self.fixed_bytes + blocks * BLOCK * self.token_bytes


@dataclass(frozen=True, slots=True)
class MemoryCosts:
    """What computing takes, as calibrated with the loaded model. Bytes."""

    layers: tuple[LayerShape, ...]
    padded: bool
    """Whether every row of a batch is as long as its longest."""
    decode_row_bytes: int
    """Transient, per row of a decode step: logits, probabilities, what sampling sorts."""
    chunk_token_bytes: int
    """Transient, per token of a prefill chunk."""
    chunk_pair_bytes: float
    """Transient, per token of a prefill chunk and token before it: the scores of attention."""
    chunk_square_bytes: float = 0.0
    """Transient, per token of a prefill chunk and token of its row in the same piece of
    :data:`PIECE` tokens: what some recurrent layers compute of all pairs."""

    def row_bytes(self, tokens: int) -> int:
        """Return the KV bytes of one sequence alone; exact for plain layers."""
        return sum(layer.row_bytes(tokens) for layer in self.layers)

    def batch_bytes(self, lengths: Iterable[int]) -> int:
        """Return the KV bytes of sequences of these lengths, held in whole blocks.

        A row that joins a batch, or goes on from a prefix of the prompt cache, is
        not aligned to the blocks, so each has up to one block more.
        """
        rows = sorted(lengths)
        if not rows:
            return 0
        if self.padded:
            return len(rows) * self.row_bytes(rows[-1] + BLOCK)
        return sum(self.row_bytes(row + BLOCK) for row in rows)

    def copy_bytes(self, rows: int, longest: int) -> int:
        """Return what exists twice while a batch changes: some layers, and one row that leaves."""
        layer = max((each.row_bytes(longest + BLOCK) for each in self.layers), default=0)
        return rows * layer * min(_LAYERS_IN_COPY, len(self.layers)) + self.row_bytes(longest)

    def chunk_bytes(self, tokens: int, longest: int, step: int) -> int:
        """Return what a prefill chunk of so many tokens takes on top of its KV.

        Args:
            tokens: Of all rows, with what fills the shorter ones up.
            longest: Tokens of the longest row in the end.
            step: Tokens of a row in a chunk at most.
        """
        each = self.chunk_token_bytes + self.chunk_pair_bytes * longest
        return int(tokens * (each + self.chunk_square_bytes * min(step, longest, PIECE)))


@dataclass(slots=True)
class _Reservation:
    tokens: int
    prefilling: bool = True


class MemoryLedger:
    """Reservations of what runs. One thread changes it; reading the numbers is safe from any.

    A reservation is in tokens, and grows as its sequence does. It is priced
    together with all others, and nothing is granted beyond the limit.
    """

    def __init__(
        self, costs: MemoryCosts, *, limit_bytes: int, prefill_step: int, prefill_rows: int
    ) -> None:
        """Promise at most ``limit_bytes``.

        Args:
            costs: As calibrated.
            limit_bytes: What requests and the prompt cache may take together.
            prefill_step: Tokens of one prompt in a prefill chunk at most.
            prefill_rows: Prompts of that many tokens that share a chunk at most; of shorter ones
                more do, up to as many tokens.
        """
        self.costs = costs
        self.limit_bytes = limit_bytes
        self.reserved_bytes = 0
        """Promised now; never above the limit."""
        self._held: dict[Hashable, _Reservation] = {}
        self.largest_tokens = 0
        """Prompt and answer of the largest sequence that fits when it is alone."""
        self.set_prefill(prefill_step, prefill_rows)

    def __len__(self) -> int:
        """Return the number of reservations."""
        return len(self._held)

    @property
    def longest_tokens(self) -> int:
        """Tokens of the longest reservation; 0 where there is none."""
        return max((each.tokens for each in self._held.values()), default=0)

    @property
    def spare_bytes(self) -> int:
        """What is not promised: the prompt cache may have it until a request needs it."""
        return self.limit_bytes - self.reserved_bytes

    def set_prefill(self, step: int, rows: int) -> None:
        """Price prefill chunks of another size from now on.

        Reservations that were granted stay, even where larger chunks make them
        dearer than the limit allows: ``reserved_bytes`` is then the limit.
        """
        self._step, self._rows = step, rows
        self.largest_tokens = self._largest()
        self._settle()

    def quote(self, tokens: int) -> int:
        """Return what would be promised in all with one more sequence of so many tokens."""
        return self._price([*self._held.values(), _Reservation(tokens)])

    def reserve(self, key: Hashable, tokens: int) -> bool:
        """Promise memory to a new sequence; False where it does not fit now."""
        if key in self._held:
            message = f"{key!r} has a reservation already"
            raise ValueError(message)
        if self.quote(tokens) > self.limit_bytes:
            return False
        self._held[key] = _Reservation(tokens)
        self._settle()
        return True

    def grow(self, key: Hashable, tokens: int) -> bool:
        """Promise a sequence so many tokens in all; False, and nothing changed, where they don't fit."""
        held = self._held[key]
        before = held.tokens
        if tokens <= before:
            return True
        held.tokens = tokens
        if self._price(self._held.values()) > self.limit_bytes:
            held.tokens = before
            return False
        self._settle()
        return True

    def start_decoding(self, key: Hashable) -> None:
        """Note that a sequence's prompt is computed, so that no chunk is priced for it."""
        held = self._held.get(key)
        if held is not None and held.prefilling:
            held.prefilling = False
            self._settle()

    def release(self, key: Hashable) -> None:
        """Take a promise back; of a sequence without one, nothing."""
        if self._held.pop(key, None) is not None:
            self._settle()

    def _settle(self) -> None:
        self.reserved_bytes = min(self._price(self._held.values()), self.limit_bytes)

    def _price(self, held: Iterable[_Reservation]) -> int:
        every = [*held]
        if not every:
            return 0
        costs, lengths = self.costs, [each.tokens for each in every]
        prompts = [each.tokens for each in every if each.prefilling]
        price = costs.batch_bytes(lengths)
        price += costs.copy_bytes(len(every) if costs.padded else 1, max(lengths))
        price += costs.decode_row_bytes * len(every)
        if prompts:
            longest = max(prompts)
            tokens = min(len(prompts) * min(self._step, longest), self._rows * self._step)
            price += costs.chunk_bytes(tokens, longest, self._step)
        return price

    def _largest(self) -> int:
        """Return the longest lone sequence within the limit, by bisection: prices only rise."""
        low, high = 0, _LONGEST
        while low < high:
            middle = (low + high + 1) // 2
            if self._price([_Reservation(middle)]) <= self.limit_bytes:
                low = middle
            else:
                high = middle - 1
        return low
