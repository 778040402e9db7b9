"""Counts of several books side by side, for people who want to see what agrees."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Mapping

__all__ = ["side_by_side"]


def side_by_side(columns: Mapping[str, Counter[tuple[str, ...]]]) -> str:
    """Return a table with a column per book and a row per thing counted; the last row has the sums.

    Args:
        columns: What each book counted.
    """
    keys = sorted({key for counted in columns.values() for key in counted})
    rows = [["", *columns], ["---"] * (1 + len(columns))]
    rows += [[" ".join(key), *(str(each[key]) for each in columns.values())] for key in keys]
    rows.append(["all", *(str(each.total()) for each in columns.values())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
