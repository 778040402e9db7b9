"""The three signals that OpenTelemetry sends."""

from __future__ import annotations

from typing import Literal

__all__ = ["SIGNALS", "Signal"]

Signal = Literal["traces", "metrics", "logs"]

SIGNALS: tuple[Signal, ...] = ("traces", "metrics", "logs")
