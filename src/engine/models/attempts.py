"""What is tried again while a model is fetched: told to a person, kept for the server's metrics.

A pull runs in a process of its own, which ends before the server serves. It
writes each report to a file that the server has opened, one JSON object a line;
so what it told is kept also where it was killed.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING

from ...resilience.retry import RetryReport

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AttemptLog", "read_reports"]


class AttemptLog:
    """Takes what is reported of retries.

    Args:
        report: Gets a line for a person.
        descriptor: Of a file that gets each report too; -1 where there is none.
    """

    def __init__(self, report: Callable[[str], None], descriptor: int = -1) -> None:
        self._report = report
        self._descriptor = descriptor
        self.reports: list[RetryReport] = []

    def __call__(self, attempt: RetryReport) -> None:
        """Take a report, say it, and keep it."""
        self.reports.append(attempt)
        if attempt.outcome == "retried":
            self._report(
                f"The {attempt.operation} failed with {attempt.cause}; "
                f"trying again in {attempt.wait_seconds:.1f} s."
            )
        if self._descriptor >= 0:
            os.write(self._descriptor, json.dumps(asdict(attempt)).encode() + b"\n")


def read_reports(content: bytes) -> list[RetryReport]:
    """Return the reports that another process has written; a last line that was cut is left out."""
    whole = content[: content.rfind(b"\n") + 1]
    return [RetryReport(**json.loads(line)) for line in whole.splitlines()]
