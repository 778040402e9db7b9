"""Retries: of named errors alone, three times, with growing waits, and one error at the end."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from mlx_pharos.resilience.errors import ModelError, NetworkError
from mlx_pharos.resilience.retry import Retry, RetryPolicy, RetryReport, transient_file_error

if TYPE_CHECKING:
    from collections.abc import Callable

FAST = RetryPolicy(first_wait=0.001)


def _failing(times: int, error: Exception) -> tuple[Callable[[], str], list[int]]:
    calls: list[int] = []

    def call() -> str:
        calls.append(len(calls) + 1)
        if len(calls) <= times:
            raise error
        return "done"

    return call, calls


def test_what_fails_twice_succeeds_with_the_third_attempt() -> None:
    """Each failure is reported with its wait, and the late success too."""
    told: list[RetryReport] = []
    call, calls = _failing(2, TimeoutError("secret /path"))
    result = Retry(FAST, listener=told.append, chance=lambda: 0.0)(
        call, operation="download", on=TimeoutError
    )
    assert ("done", [1, 2, 3]) == (result, calls)
    assert told == [
        RetryReport("download", "retried", 1, "TimeoutError", 0.001),
        RetryReport("download", "retried", 2, "TimeoutError", 0.002),
        RetryReport("download", "succeeded", 3, ""),
    ]


def test_the_last_failure_is_a_network_error_with_its_cause() -> None:
    """Four attempts; the message is ours and holds nothing of the cause's text."""
    told: list[RetryReport] = []
    error = OSError(errno.ESTALE, "Stale file handle", "/home/ann/model")
    call, calls = _failing(9, error)
    with pytest.raises(NetworkError) as raised:
        Retry(FAST, listener=told.append)(call, operation="file access", on=OSError)
    assert 4 == len(calls)
    assert error is raised.value.__cause__
    assert "The file access failed 4 times, the last time with OSError ESTALE." == str(raised.value)
    assert ["retried"] * 3 + ["given_up"] == [report.outcome for report in told]
    assert isinstance(raised.value, ModelError)


def test_an_error_that_is_not_named_comes_out_at_once() -> None:
    """Neither retried nor wrapped, also after one that was."""
    told: list[RetryReport] = []
    errors = [TimeoutError(), KeyError("x")]

    def call() -> None:
        raise errors.pop(0)

    with pytest.raises(KeyError):
        Retry(FAST, listener=told.append)(call, operation="download", on=TimeoutError)
    assert ["retried"] == [report.outcome for report in told]


def test_an_interrupt_is_never_retried() -> None:
    """Ctrl-C ends a download."""
    calls = []

    def call() -> None:
        calls.append(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Retry(FAST)(call, operation="download", on=Exception)
    assert [1] == calls


def test_what_succeeds_at_once_says_nothing() -> None:
    """A report is for what was tried again."""
    told: list[RetryReport] = []
    assert 7 == Retry(listener=told.append)(lambda: 7, operation="download", on=OSError)
    assert [] == told


@pytest.mark.parametrize(("chance", "waits"), [(0.0, [0.1, 0.2, 0.4]), (1.0, [0.125, 0.25, 0.5])])
def test_default_waits_double_from_a_tenth_of_a_second(chance: float, waits: list[float]) -> None:
    """100, 200 and 400 ms, and a quarter more at most."""
    policy = RetryPolicy()
    assert waits == [pytest.approx(policy.wait(retry, chance)) for retry in (1, 2, 3)]
    assert 3 == policy.retries


@pytest.mark.parametrize(
    ("code", "transient"),
    [
        (errno.ESTALE, True),
        (errno.EIO, True),
        (errno.ENOENT, False),
        (errno.EACCES, False),
        (errno.ENOSPC, False),
    ],
)
def test_only_faults_that_may_pass_are_transient(code: int, transient: bool) -> None:
    """A disk that is full or forbidden stays so."""
    assert transient == transient_file_error(OSError(code, "text"))
