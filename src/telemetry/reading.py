"""What a collection learns of one number, and where it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Reading", "Source"]


@dataclass(frozen=True, slots=True)
class Reading:
    """One number of an instrument, with the attributes that tell it from others."""

    value: float
    attributes: Mapping[str, str] = field(default_factory=dict)


class Source(Protocol):
    """Where an instrument's numbers are. It should be quick, and never block."""

    def __call__(self) -> float | Iterable[Reading] | None:
        """Return a number, a :class:`Reading` per series, or None where nothing is known now.

        Called at each scrape, in the I/O thread, which nothing may block, and at each collection
        for OTLP, in the thread that collects.
        """
