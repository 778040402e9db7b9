"""Telemetry's tests hear the log of OpenTelemetry's packages themselves."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Telemetry of servers that other tests keep running does not take the packages' log."""
    source = logging.getLogger("opentelemetry")
    monkeypatch.setattr(source, "handlers", [])
    monkeypatch.setattr(source, "propagate", True)
