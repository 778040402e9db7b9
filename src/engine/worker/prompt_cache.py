"""The prompt cache: KV state of prefixes that were computed before.

It wraps mlx-lm's ``LRUPromptCache`` and is its only owner. Used by the MLX
thread alone.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
from mlx_lm.models.cache import (
    KVCache,
    LRUPromptCache,
    PromptTrie,
    PromptTrieResult,
    can_trim_prompt_cache,
    trim_prompt_cache,
)

from .runner import StoredPrefix

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PromptCache"]

_MODEL = ""
"""mlx-lm keys entries by model; an engine has one."""
_MAX_ENTRIES = 512
"""Bounds the index; the bytes are bounded by the setting."""
_MIN_PREFIX = 16
"""Tokens. A shorter prefix is not worth its copy, and the first token of a chat template,
which all prompts share, would make a hit of every lookup."""


class PromptCache:
    """Finds the longest stored prefix of a prompt and keeps the newest within its bytes."""

    def __init__(self, *, limit_bytes: int) -> None:
        """Keep at most ``limit_bytes`` of KV state; 0 switches the cache off."""
        self.limit_bytes = limit_bytes
        self.hits = 0
        self.misses = 0
        self.bypasses = 0
        """Prompts that were not looked up because the cache is off."""
        self._entries = LRUPromptCache(max_size=_MAX_ENTRIES, max_bytes=limit_bytes)
        self._entries._trie = _PromptTrie()  # type: ignore[no-untyped-call]  # noqa: SLF001
        self._order = _Order()
        self._entries._lru = self._order  # noqa: SLF001

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._entries)

    def allow(self, size: int) -> None:
        """Keep at most so many bytes from now on, within the limit; older entries make room."""
        self._entries.max_bytes = min(max(size, 0), self.limit_bytes)
        if self._entries.nbytes > self._entries.max_bytes:
            self._entries.trim_to(n_bytes=self._entries.max_bytes)

    @property
    def evictions(self) -> int:
        """Entries that made room; one that a longer one replaced does not count."""
        return self._order.evictions

    @property
    def size_bytes(self) -> int:
        """Bytes of KV state that the entries hold."""
        return int(self._entries.nbytes)

    def lookup(self, tokens: list[int], *, counted: bool = True) -> StoredPrefix | None:
        """Return a copy of the KV state of the longest stored prefix.

        At least the last token is left to compute: its logits are needed.

        Args:
            tokens: The prompt.
            counted: Whether this is a hit or a miss. It is neither where a request
                reads what it has just stored itself.
        """
        if not self.limit_bytes:
            self.bypasses += 1
            return None
        found = self._find(tokens[:-1]) if len(tokens) > _MIN_PREFIX else None
        if counted and found is None:
            self.misses += 1
        elif counted:
            self.hits += 1
        return found

    def store(self, prefix: StoredPrefix) -> None:
        """Keep KV state, which the cache owns from now on; older entries make room.

        State that is larger than the whole cache is not kept: all others would go for it.
        """
        size = sum(layer.nbytes for layer in prefix.cache)
        if not prefix.tokens or size > self._entries.max_bytes:
            return
        # What a batch hands out are views of its buffers, still to be computed. Each would keep
        # the buffers of the whole batch, and the bytes counted would not be the bytes held.
        mx.eval([layer.state for layer in prefix.cache])
        self._entries.insert_cache(_MODEL, prefix.tokens, prefix.cache)

    def _find(self, tokens: list[int]) -> StoredPrefix | None:
        """Prefer the longest match; one inside a longer entry needs caches that can be cut."""
        trie = self._entries._trie  # noqa: SLF001
        match = trie.search(_MODEL, tokens)
        if match.common_prefix < _MIN_PREFIX:
            return None
        if match.exact is not None:
            return StoredPrefix(tokens, copy.deepcopy(self._use(tokens)))
        length = len(match.shorter or ())
        if match.longer is not None and match.common_prefix > length:
            cache = trie.get(_MODEL, match.longer).prompt_cache
            if can_trim_prompt_cache(cache):
                self._use(match.longer)
                cut = len(match.longer) - match.common_prefix
                return StoredPrefix(tokens[: match.common_prefix], _copy_without_end(cache, cut))
        if length < _MIN_PREFIX:
            return None
        known = tokens[:length]
        return StoredPrefix(known, copy.deepcopy(self._use(known)))

    def _use(self, tokens: list[int]) -> list[Any]:
        """Return an entry's KV state, and let it be the last to make room.

        mlx-lm's own lookup does not count as a use.
        """
        self._order.remove(_MODEL, tokens)
        self._order.push(_MODEL, tokens)
        return cast("list[Any]", self._entries._trie.get(_MODEL, tokens).prompt_cache)  # noqa: SLF001


class _Order(LRUPromptCache.CacheOrder):
    """mlx-lm's order of use, which also counts what it gave up."""

    def __init__(self) -> None:
        super().__init__()
        self.evictions = 0

    def pop(self) -> Any:  # noqa: ANN401 - a model and its tokens
        """Return the entry that makes room next."""
        self.evictions += 1
        return super().pop()  # type: ignore[no-untyped-call]


class _PromptTrie(PromptTrie):
    """mlx-lm's index with a search that is linear in the length of the prompt.

    The search of mlx-lm 0.32.2 builds a new list at each token below the point
    where two prompts part, which takes seconds on the MLX thread when a stored
    prompt has 100,000 tokens. Any longer entry serves as well as the shortest,
    because it is cut down to the common prefix, so the first one is taken.
    """

    def search(self, model: Any, tokens: Sequence[int]) -> PromptTrieResult:  # noqa: ANN401
        """Find an exact entry, the longest shorter one, and a longer one with a common prefix."""
        node = self._trie.get(model)
        if node is None:
            return PromptTrieResult(model, None, None, None, 0)
        shorter = depth = 0
        for token in tokens:
            child = node.get(token)
            if child is None:
                break
            node = child
            depth += 1
            if _VALUE in node:
                shorter = depth
        if depth and shorter == len(tokens):
            return PromptTrieResult(model, list(tokens), None, None, depth)
        longer = list(tokens[:depth]) + _first_path(node) if depth else None
        exact_prefix = list(tokens[:shorter]) if shorter else None
        return PromptTrieResult(model, None, exact_prefix, longer, depth)


def _copy_without_end(cache: list[Any], cut: int) -> list[Any]:
    """Copy KV state less its last ``cut`` tokens.

    Plain layers are sliced, so that a short common prefix of a very long entry
    does not cost a copy of the whole entry.
    """
    if all(type(layer) is KVCache for layer in cache):
        return [_slice(layer, layer.offset - cut) for layer in cache]
    copied = copy.deepcopy(cache)
    trim_prompt_cache(copied, cut)
    return copied


def _slice(layer: KVCache, length: int) -> KVCache:
    part = KVCache()
    keys, values = layer.keys_and_values()
    part.keys = keys[..., :length, :]
    part.values = values[..., :length, :]
    part.offset = length
    return part


_VALUE = "__value__"


def _first_path(node: dict[Any, Any]) -> list[int]:
    """Return the tokens from a node to the first entry below it."""
    path: list[int] = []
    while _VALUE not in node:
        token = next(iter(node))
        path.append(token)
        node = node[token]
    return path
