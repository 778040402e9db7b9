"""The prompt cache: what it saves, what it holds, what went wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .panel import empty_board, graph, number
from .query import gauge, or_none, rate, share

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard

__all__ = ["board"]

_LOOKUPS = "pharos.prompt_cache.lookups"
_PROMPTS = rate("pharos.tokens", where='type=~"input_.+"')
_SAVED = share(or_none(rate("pharos.tokens", where='type="input_cached"')), _PROMPTS)


def board() -> Dashboard:
    """Return the board of the prompt cache."""
    made = empty_board(
        "prompt-cache", "prompt cache", "What is not computed again, and what it costs."
    )
    return (
        made.with_panel(
            number(
                "Prompt tokens saved",
                "Share of prompts' tokens that were taken from the cache.",
                _SAVED,
                unit="percentunit",
                width=8,
            )
        )
        .with_panel(
            number(
                "Hits",
                "Share of lookups that found a beginning of the prompt.",
                share(rate(_LOOKUPS, where='result="hit"'), rate(_LOOKUPS)),
                unit="percentunit",
                width=8,
            )
        )
        .with_panel(
            number(
                "Full",
                "Share of the limit that the entries hold.",
                share(gauge("pharos.prompt_cache.size"), gauge("pharos.prompt_cache.limit")),
                unit="percentunit",
                width=8,
            )
        )
        .with_panel(
            graph(
                "Lookups",
                "Prompts looked up a second; bypass: without the cache.",
                (rate(_LOOKUPS, by="result"), "{{result}}"),
                unit="ops",
            )
        )
        .with_panel(
            graph(
                "Prompt tokens",
                "Tokens a second, computed and taken from the cache.",
                (rate("pharos.tokens", by="type", where='type=~"input_.+"'), "{{type}}"),
            )
        )
        .with_panel(
            graph(
                "Size",
                "KV state that the entries hold, and may hold.",
                (gauge("pharos.prompt_cache.size", by="tier"), "{{tier}}"),
                (gauge("pharos.prompt_cache.limit", by="tier"), "{{tier}}: limit"),
                unit="bytes",
            )
        )
        .with_panel(
            graph(
                "Entries",
                "Prompts, and parts of prompts, that are held.",
                (gauge("pharos.prompt_cache.entries", by="tier"), "{{tier}}"),
            )
        )
        .with_panel(
            graph(
                "Evictions",
                "Entries a second that made room, by why room was needed.",
                (
                    or_none(rate("pharos.prompt_cache.evictions", by="kind"), label="kind"),
                    "{{kind}}",
                ),
                unit="ops",
            )
        )
        .with_panel(
            graph(
                "Errors and corruptions",
                "Operations that failed, and entries that were not what had been stored; those "
                "were not used.",
                (
                    or_none(rate("pharos.prompt_cache.errors", by="kind"), label="kind"),
                    "error: {{kind}}",
                ),
                (
                    or_none(rate("pharos.prompt_cache.corruptions", by="kind"), label="kind"),
                    "corruption: {{kind}}",
                ),
                unit="ops",
            )
        )
    )
