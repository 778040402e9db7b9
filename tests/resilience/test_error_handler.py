"""The face of the policies for errors, with the real parts behind it."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

import pytest

from mlx_pharos.resilience.error_handler import ErrorHandler
from mlx_pharos.resilience.errors import CacheError, NetworkError, OOMError
from mlx_pharos.resilience.ladder import MemoryLadder, Rung
from mlx_pharos.resilience.retry import Retry, RetryPolicy

if TYPE_CHECKING:
    from mlx_pharos.resilience.breaker import BreakerTransition


class _Buffer:
    """Memory that is really held, and freed by a third the first time."""

    def __init__(self) -> None:
        self.held = bytearray(3 << 20)

    def free(self) -> None:
        del self.held[1 << 20 :]

    def ladder(self, *, fails: bool = False) -> MemoryLadder:
        def measure() -> int:
            if fails:
                message = "unable to measure /home/ann"
                raise RuntimeError(message)
            return len(self.held)

        rung = Rung("buffer_cache", self.free)
        return MemoryLadder([rung], measure=measure, clock=lambda: 0.0)


def test_five_cache_errors_switch_the_cache_off() -> None:
    """The handler counts in its real breaker, and says what each error was."""
    told: list[BreakerTransition] = []
    handler = ErrorHandler(listener=told.append)
    for _ in range(5):
        assert handler.cache_breaker.is_closed
        known = handler.handle_cache_error(RuntimeError("[malloc] /x"), "load")
    assert ("load", "The prompt cache failed with RuntimeError.") == (known.operation, str(known))
    assert isinstance(known.__cause__, RuntimeError)
    assert ["open"] == [change.to for change in told]


def test_a_cache_error_keeps_what_it_knows() -> None:
    """A corruption that was found stays one."""
    error = CacheError("An entry is broken.", operation="lookup", corruption="format")
    assert error is ErrorHandler().handle_cache_error(error, "load")


def test_cache_errors_from_eight_threads_never_hang() -> None:
    """Also where the listener asks the handler's breaker and reports another error."""

    def listener(_: BreakerTransition) -> None:
        handler.handle_cache_error(RuntimeError(), "store")

    handler = ErrorHandler(listener=listener)
    threads = [
        threading.Thread(
            target=lambda: [handler.handle_cache_error(RuntimeError(), "store") for _ in range(50)]
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert not handler.cache_breaker.is_closed


def test_freed_memory_is_what_was_measured(caplog: pytest.LogCaptureFixture) -> None:
    """No number is invented: the second time nothing is there to free, and that is said."""
    handler, ladder = ErrorHandler(), _Buffer().ladder()
    with caplog.at_level(logging.WARNING):
        first = handler.handle_oom_error(RuntimeError("[malloc] no"), ladder)
        second = handler.handle_oom_error(RuntimeError("[malloc] no"), ladder)
    assert (3 << 20, 1 << 20) == (first.before_bytes, first.after_bytes)
    assert (1 << 20, 1 << 20) == (second.before_bytes, second.after_bytes)
    assert "buffer_cache: 3.0 MiB in use before, 1.0 MiB after" in caplog.text
    assert "buffer_cache: 1.0 MiB in use before, 1.0 MiB after" in caplog.text


def test_a_ladder_that_fails_is_an_error_of_memory() -> None:
    """What the ladder raised is the cause, and its text is not shown."""
    with pytest.raises(OOMError) as raised:
        ErrorHandler().handle_oom_error(MemoryError(), _Buffer().ladder(fails=True))
    assert isinstance(raised.value.__cause__, RuntimeError)
    assert "/home" not in str(raised.value)


def test_retries_are_the_real_ones() -> None:
    """Four attempts by default, then a network error."""
    calls = []

    def call() -> None:
        calls.append(1)
        raise TimeoutError

    handler = ErrorHandler(retry=Retry(RetryPolicy(first_wait=0.001)))
    with pytest.raises(NetworkError):
        handler.retry_with_backoff(call, operation="download", on=TimeoutError)
    assert 4 == len(calls)


def test_messages_are_sanitized() -> None:
    """A path and a key go, the rest stays."""
    assert "cannot read [path]: key=[secret]" == ErrorHandler.sanitize_error_message(
        "cannot read /home/ann/x: key=abc"
    )
