"""What the battery of faults came to, summed over the processes that tests run in."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

__all__ = ["Tally", "summary"]

_FAULTS = "tests/faults/"
_PROPERTY = "tally"
_PHASES = {"setup", "call", "teardown"}


@dataclass
class Tally:
    """What was counted during one fault, which is one test."""

    requests: int = 0
    """Generation requests that were sent, those before and after the fault included."""
    lost: int = 0
    doubled: int = 0

    def write_on(self, report: pytest.TestReport) -> None:
        """Have a report carry the counts so far; it goes to the process that sums them."""
        report.user_properties.append((_PROPERTY, asdict(self)))


def summary(reports: Iterable[pytest.TestReport]) -> str:
    """Return what is to be said of all faults; empty where none was done.

    A test is counted as a fault from its beginning on, and as survived if nothing of it failed, what
    comes after its end included.
    """
    faults: dict[str, list[pytest.TestReport]] = defaultdict(list)
    for report in reports:
        if report.nodeid.startswith(_FAULTS):
            faults[report.nodeid].append(report)
    done = [each for each in faults.values() if not any(report.skipped for report in each)]
    if not done:
        return ""
    survived = sum(
        {report.when for report in each} == _PHASES and all(report.passed for report in each)
        for each in done
    )
    told = [_counts(report) for each in done for report in each if report.when == "teardown"]
    sums = {name: sum(each.get(name, 0) for each in told) for name in asdict(Tally())}
    return (
        f"faults survived: {survived} of {len(done)}, requests: {sums['requests']}, "
        f"lost: {sums['lost']}, doubled: {sums['doubled']}"
    )


def _counts(report: pytest.TestReport) -> dict[str, int]:
    properties: dict[str, Any] = dict(report.user_properties)
    found: dict[str, int] = properties.get(_PROPERTY, {})
    return found
