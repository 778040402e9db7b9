"""Grafana's boards, made with grafana-foundation-sdk; ``make docs`` writes them to ``deploy/``.

Each board is a module. :mod:`.panel` has what their panels share, :mod:`.query` the ways in which a
metric is asked for.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from . import cache, engine, health, latency, overview

if TYPE_CHECKING:
    from collections.abc import Callable

    from grafana_foundation_sdk.builders.dashboard import Dashboard

__all__ = ["FILES"]

_BOARDS = {
    "overview": overview.board,
    "latency": latency.board,
    "engine": engine.board,
    "prompt-cache": cache.board,
    "telemetry-health": health.board,
}


def _text(board: Callable[[], Dashboard]) -> str:
    return json.dumps(board().build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


FILES: dict[str, Callable[[], str]] = {
    f"deploy/grafana/boards/{name}.json": partial(_text, board) for name, board in _BOARDS.items()
}
"""The files and what makes them."""
