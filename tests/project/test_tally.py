"""The line that says what the battery of faults came to."""

from __future__ import annotations

import pytest

from support.tally import Tally, summary


def _reports(name: str, **outcomes: str) -> list[pytest.TestReport]:
    """Return the reports of a test, by its phases; six requests were sent in it."""
    found = []
    for when, outcome in outcomes.items():
        report = pytest.TestReport(
            nodeid=name,
            location=(name, None, name),
            keywords={},
            outcome=outcome,  # type: ignore[arg-type] # one of three
            longrepr=None,
            when=when,  # type: ignore[arg-type] # one of three
        )
        Tally(requests=6, lost=1).write_on(report)
        found.append(report)
    return found


def test_a_fault_is_survived_if_nothing_of_its_test_failed() -> None:
    """Whoever fails before the judgement or after it is counted, and not as survived."""
    name = "tests/faults/test_x.py::"
    reports = [
        *_reports(name + "good", setup="passed", call="passed", teardown="passed"),
        *_reports(name + "bad", setup="passed", call="failed", teardown="passed"),
        *_reports(name + "late", setup="passed", call="passed", teardown="failed"),
        *_reports(name + "early", setup="failed", teardown="passed"),
        *_reports(name + "interrupted", setup="passed"),
        *_reports(name + "skipped", setup="skipped", teardown="passed"),
        *_reports("tests/server/test_x.py::other", setup="passed", call="passed"),
    ]
    assert "faults survived: 1 of 5, requests: 24, lost: 4, doubled: 0" == summary(reports)


def test_no_fault_no_line() -> None:
    """A run without faults says nothing of them."""
    assert not summary(_reports("tests/server/test_x.py::other", setup="passed", call="passed"))
