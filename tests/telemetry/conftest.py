"""Telemetry's tests know no variable of OpenTelemetry but those that they set."""

from __future__ import annotations

import logging
import os

import pytest


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Telemetry of servers that other tests keep running does not take the packages' log."""
    source = logging.getLogger("opentelemetry")
    monkeypatch.setattr(source, "handlers", [])
    monkeypatch.setattr(source, "propagate", True)
