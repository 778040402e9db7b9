"""What the doctor found in one place, and how to mend it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Finding", "Status"]

Status = Literal["ok", "note", "warning", "error"]
"""note: a fact worth knowing; warning: serving works, but worse; error: it would fail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the doctor's report."""

    name: str
    status: Status = "ok"
    text: str
    mend: str = ""
    """What to do about it; never empty for warnings and errors."""
    figures: dict[str, object] = field(default_factory=dict)
    """The same in numbers and names, for programs."""
