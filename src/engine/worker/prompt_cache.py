"""The prompt cache: KV state of prefixes that were computed before.

It wraps mlx-lm's ``LRUPromptCache`` and is its only owner. Used by the MLX
thread alone. What goes wrong in it is a :class:`CacheError`, or whatever MLX
raises; its index and its bytes hold all the same. :mod:`.guarded_cache` stands
between it and the requests.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
from mlx_lm.models.cache import (
    ChunkedKVCache,
    KVCache,
    LRUPromptCache,
    PromptTrie,
    PromptTrieResult,
    can_trim_prompt_cache,
    trim_prompt_cache,
)

from ...resilience.errors import CacheError
from ..models.cache_layers import single_layers
from .entry_seal import SealedLayers, Snapshot, offsets_of
from .recurrent_state import copy_views
from .runner import StoredPrefix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
        self.memory_evictions = 0
        """Entries that went because requests or the machine needed their memory."""
        self._evicted = 0
        """By indexes that were given up."""
        self._order = _Order()
        self._entries = self._new_index(limit_bytes)

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._entries)

    def allow(self, size: int) -> None:
        """Keep at most so many bytes from now on, within the limit; older entries make room."""
        self._entries.max_bytes = min(max(size, 0), self.limit_bytes)
        if self._entries.nbytes > self._entries.max_bytes:
            before = self._order.evictions
            self._entries.trim_to(n_bytes=self._entries.max_bytes)
            self.memory_evictions += self._order.evictions - before

    @property
    def evictions(self) -> int:
        """Entries that made room for newer ones; one that a longer one replaced does not count."""
        return self._evicted + self._order.evictions - self.memory_evictions

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

        Raises:
            CacheError: The entry that was found is not what had been stored, or
                cannot be copied. It has been dropped; the lookup was a miss.
        """
        if not self.limit_bytes:
            self.bypass(counted=counted)
            return None
        found = None
        try:
            if len(tokens) > _MIN_PREFIX:
                found = self._find(tokens[:-1])
        finally:
            if counted and found is None:
                self.misses += 1
            elif counted:
                self.hits += 1
        return found

    def bypass(self, *, counted: bool = True) -> None:
        """Count a prompt that is not looked up."""
        self.bypasses += counted

    def store(self, prefix: StoredPrefix) -> None:
        """Keep KV state, which the cache owns from now on; older entries make room.

        State that is larger than the whole cache is not kept: all others would go for it.

        Raises:
            CacheError: The state is not that of its tokens.
        """
        size = sum(layer.nbytes for layer in prefix.cache)
        if not prefix.tokens or size > self._entries.max_bytes:
            return
        if any(offset != len(prefix.tokens) for offset in offsets_of(prefix.cache)):
            raise CacheError("The state to store is not that of its tokens.", operation="store")
        # What a batch hands out are views of its buffers, still to be computed. Each would keep
        # the buffers of the whole batch, and the bytes counted would not be the bytes held.
        copy_views(prefix.cache)
        mx.eval([layer.state for layer in prefix.cache])
        sealed = SealedLayers(prefix.cache)
        try:
            self._entries.insert_cache(_MODEL, prefix.tokens, sealed)
        except Exception:
            self.clear()  # what the index holds now is not known
            raise

    def clear(self) -> None:
        """Drop all entries. Never fails, whatever state the index is in."""
        self._evicted += self._order.evictions
        self._order = _Order()
        self._entries = self._new_index(self._entries.max_bytes)

    def suits(self, prefix: StoredPrefix) -> bool:
        """Whether :meth:`verify` can show anything with this state: it is kept, and found again."""
        size = sum(layer.nbytes for layer in prefix.cache)
        return len(prefix.tokens) >= _MIN_PREFIX and size <= self._entries.max_bytes

    def verify(self, prefix: StoredPrefix) -> None:
        """Store state, load it, and compare all bytes with what they were before.

        Raises:
            CacheError: What came back is something else.
        """
        tokens = list(prefix.tokens)
        mx.eval([layer.state for layer in prefix.cache])
        before = Snapshot(prefix.cache)
        self.store(prefix)
        found = self._find(tokens)
        if found is None or found.tokens != tokens or not before.equals(found.cache):
            raise CacheError(
                "What was stored came back as something else.",
                operation="load",
                corruption="content",
            )

    def _new_index(self, max_bytes: int) -> LRUPromptCache:
        entries = LRUPromptCache(max_size=_MAX_ENTRIES, max_bytes=max_bytes)
        entries._trie = _PromptTrie()  # type: ignore[no-untyped-call]  # noqa: SLF001
        entries._lru = self._order  # noqa: SLF001
        return entries

    def _find(self, tokens: list[int]) -> StoredPrefix | None:
        """Prefer the longest match; one inside a longer entry needs caches that can be cut."""
        match = self._entries._trie.search(_MODEL, tokens)  # noqa: SLF001
        if match.common_prefix < _MIN_PREFIX:
            return None
        if match.exact is not None:
            return self._load(tokens, copy.deepcopy, tokens)
        length = len(match.shorter or ())
        if match.longer is not None and match.common_prefix > length:
            cut = len(match.longer) - match.common_prefix
            if _can_cut(self._intact(match.longer)):
                return self._load(
                    match.longer,
                    lambda layers: _copy_without_end(layers, cut),
                    tokens[: match.common_prefix],
                )
        if length < _MIN_PREFIX:
            return None
        return self._load(tokens[:length], copy.deepcopy, tokens[:length])

    def _load(
        self, key: list[int], copied: Callable[[list[Any]], list[Any]], tokens: list[int]
    ) -> StoredPrefix:
        """Return a copy of an entry, or of its beginning; one that cannot be copied is dropped."""
        layers = self._intact(key)
        # mlx-lm's own lookup does not count as a use.
        self._order.remove(_MODEL, key)
        self._order.push(_MODEL, key)
        try:
            return StoredPrefix(tokens, copied(list(layers)))
        except Exception as error:
            self._drop(key)
            raise CacheError("An entry could not be copied.", operation="load") from error

    def _intact(self, key: list[int]) -> list[Any]:
        """Return the layers of an entry; one that is not what had been stored is dropped."""
        entry = self._entries._trie.get(_MODEL, key)  # noqa: SLF001
        layers = entry.prompt_cache
        corruption = _corruption(layers, len(key))
        if corruption:
            self._drop(key)
            raise CacheError(
                "An entry is not what had been stored.", operation="lookup", corruption=corruption
            )
        return cast("list[Any]", layers)

    def _drop(self, key: list[int]) -> None:
        entries = self._entries
        entry = entries._trie.pop(_MODEL, key)  # noqa: SLF001
        self._order.remove(_MODEL, key)
        entries._n_bytes -= entry.nbytes  # noqa: SLF001
        entries._n_bytes_by_type[entry.cache_type] -= entry.nbytes  # noqa: SLF001


def _corruption(layers: object, tokens: int) -> str:
    """Say what of an entry is not as it was stored; empty where it is intact."""
    try:
        if not isinstance(layers, SealedLayers):
            return "format"
        if any(offset != tokens for offset in offsets_of(layers)):
            return "content"
        intact = layers.intact
    except Exception:  # noqa: BLE001 - a broken layer raises anything when it is looked at
        return "format"
    return "" if intact else "format"


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


def _can_cut(layers: list[Any]) -> bool:
    """Return whether an entry still has all that its beginning needs.

    mlx-lm says so of chunked attention always, also where what came before the
    chunk is gone.
    """
    return can_trim_prompt_cache(layers) and not any(
        isinstance(layer, ChunkedKVCache) and layer.start_position
        for layer in single_layers(layers)
    )


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
