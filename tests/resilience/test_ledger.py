"""The memory ledger, against a plain model of it: what it promises it can keep."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mlx_pharos.resilience.ledger import BLOCK, LayerShape, MemoryCosts, MemoryLedger

KEYS = st.integers(0, 7)
TOKENS = st.integers(1, 5000)

COSTS = MemoryCosts(
    layers=(LayerShape(64), LayerShape(64, window=600), LayerShape(fixed_bytes=5000)),
    padded=True,
    decode_row_bytes=1000,
    chunk_token_bytes=50,
    chunk_pair_bytes=0.5,
)


def ledger(costs: MemoryCosts = COSTS, *, limit: int = 4_000_000) -> MemoryLedger:
    """A ledger with chunks of 256 tokens of 4 prompts."""
    return MemoryLedger(costs, limit_bytes=limit, prefill_step=256, prefill_rows=4)


def plain(token_bytes: int, *, padded: bool) -> MemoryCosts:
    """Costs of KV state alone."""
    return MemoryCosts((LayerShape(token_bytes),), padded, 0, 0, 0.0)


class LedgerMachine(RuleBasedStateMachine):
    """Reserves, grows, decodes, shrinks and releases in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = ledger()
        self.held: dict[int, int] = {}

    @rule(key=KEYS, tokens=TOKENS)
    def reserve(self, key: int, tokens: int) -> None:
        """Refused only where others hold memory, or where it can never fit."""
        if key in self.held:
            with pytest.raises(ValueError, match="already"):
                self.ledger.reserve(key, tokens)
        elif self.ledger.reserve(key, tokens):
            self.held[key] = tokens
        else:
            assert self.held or tokens > self.ledger.largest_tokens

    @rule(key=KEYS, more=TOKENS)
    def grow(self, key: int, more: int) -> None:
        """A refusal changes nothing."""
        if key not in self.held:
            return
        before, wanted = self.ledger.reserved_bytes, self.held[key] + more
        if self.ledger.grow(key, wanted):
            self.held[key] = wanted
            assert self.ledger.reserved_bytes >= before
        else:
            assert self.ledger.reserved_bytes == before
            assert len(self.held) > 1 or wanted > self.ledger.largest_tokens

    @rule(key=KEYS)
    def decode(self, key: int) -> None:
        """A prompt that is computed is never dearer than before."""
        before = self.ledger.reserved_bytes
        self.ledger.start_decoding(key)
        assert self.ledger.reserved_bytes <= before

    @rule(step=st.sampled_from((32, 256)))
    def shrink(self, step: int) -> None:
        """What was granted stays granted."""
        self.ledger.set_prefill(step, 4)

    @rule(key=KEYS)
    def release(self, key: int) -> None:
        """Also of what was never reserved."""
        before = self.ledger.reserved_bytes
        self.ledger.release(key)
        self.held.pop(key, None)
        assert self.ledger.reserved_bytes <= before

    @invariant()
    def within_bounds(self) -> None:
        """Never below zero, never above the limit, and nothing held is nothing reserved."""
        assert 0 <= self.ledger.reserved_bytes <= self.ledger.limit_bytes
        assert self.ledger.spare_bytes >= 0
        assert len(self.held) == len(self.ledger)
        assert bool(self.held) == bool(self.ledger.reserved_bytes)

    def teardown(self) -> None:
        """Whatever happened, releasing all leaves nothing."""
        for key in range(8):
            self.ledger.release(key)
        assert (0, 0) == (self.ledger.reserved_bytes, len(self.ledger))


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=60, stateful_step_count=40)


@given(tokens=st.integers(1, 100_000))
@settings(max_examples=50)
def test_a_plain_layer_is_priced_in_whole_blocks(tokens: int) -> None:
    """2 x 4 heads x 16 x 4 bytes per token, in blocks of 256."""
    layer = LayerShape(2 * 4 * 16 * 4)
    assert 2 * 4 * 16 * 4 * 256 * -(-tokens // 256) == layer.row_bytes(tokens)


def test_a_window_and_a_state_stop_growing() -> None:
    """A sliding window is full at its size; recurrent state has one size."""
    assert LayerShape(10, window=500).row_bytes(10**6) == 10 * 512
    assert 10 * 256 == LayerShape(10, window=500).row_bytes(200)
    assert {77} == {LayerShape(fixed_bytes=77).row_bytes(tokens) for tokens in (1, 10**6)}


def test_a_padded_batch_costs_its_longest_row_in_every_row() -> None:
    """One long request makes its company dear; without padding each has a block more, no other."""
    lengths = [10 * BLOCK, BLOCK, BLOCK, BLOCK]
    assert 4 * 11 * BLOCK == plain(1, padded=True).batch_bytes(lengths)
    assert 17 * BLOCK == plain(1, padded=False).batch_bytes(lengths)


def test_the_largest_that_fits_does_and_one_more_token_does_not() -> None:
    """What a refusal names as the largest is exact."""
    book = ledger()
    largest = book.largest_tokens
    assert largest > BLOCK
    assert not book.reserve("one more", largest + 1)
    assert book.reserve("largest", largest)


def test_a_chunk_is_priced_by_its_tokens() -> None:
    """Each short prompt adds its own to the chunk, until that is full; long ones fill it at once."""
    costs = MemoryCosts(
        (LayerShape(1),),
        padded=False,
        decode_row_bytes=0,
        chunk_token_bytes=10**6,
        chunk_pair_bytes=0.0,
    )
    for tokens, chunks in (
        (100, [100 * n for n in range(1, 11)] + [1024] * 2),
        (700, [256, 512, 768, 1024, 1024]),
    ):
        book = ledger(costs, limit=1 << 40)
        for number, chunk in enumerate(chunks):
            assert book.reserve(number, tokens)
            assert chunk == book.reserved_bytes // 10**6


def test_smaller_chunks_leave_more_room() -> None:
    """Shrinking the prefill step helps what is promised now and what could be at most."""
    book = ledger()
    book.reserve("a", 2000)
    before, largest = book.reserved_bytes, book.largest_tokens
    book.set_prefill(32, 1)
    assert book.reserved_bytes < before
    assert book.largest_tokens > largest
