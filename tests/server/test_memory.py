"""A server whose memory is scarce: what never fits is refused in words, the rest waits its turn."""

from __future__ import annotations

import re
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from support.client import COMPLETIONS, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.client import RunningServer

_LIMIT = 24 << 20
"""Of the engine. The tiny model takes half a megabyte; a prefill chunk of 256 tokens some."""


@pytest.fixture(scope="module")
def scarce(tiny_model: Path, serving: Callable[..., Any]) -> Iterator[RunningServer]:
    """A server with memory for a few requests at a time."""
    with serving(tiny_model, memory_limit_bytes=_LIMIT, max_batch=8, max_queue=64) as running:
        yield running


def _largest(server: RunningServer) -> int:
    largest: int = server.get("/health").json["memory"]["largest_request_tokens"]
    return largest


def _complete(server: RunningServer, prompt: int, max_tokens: int) -> Any:
    return server.post(
        COMPLETIONS,
        {"model": "tiny", "prompt": "a" * prompt, "max_tokens": max_tokens, "temperature": 0},
    )


def test_what_never_fits_is_refused_at_once_with_the_largest_that_does(
    scarce: RunningServer,
) -> None:
    """The message names the size in tokens; a request of that size is served, one more is not."""
    largest = _largest(scarce)
    assert 1000 < largest < 8000
    refused = _complete(scarce, 100, largest - 99)
    assert (400, "request_too_large") == (refused.status, refused.error["code"])
    assert "prompt" == refused.error["param"]
    assert str(largest) in re.findall(r"\d+", refused.error["message"])
    assert "Retry-After" not in refused.headers
    served = _complete(scarce, largest - 5, 5)
    assert 200 == served.status, served.body
    assert 'pharos_admission_refusals_total{reason="too_large"} 1' in _scrape(scarce)
    labels = 'error_type="request_too_large",finish_reason="refused",model="tiny"'
    # Counted after its refusal is.
    wait_until(lambda: f"pharos_requests_finished_total{{{labels}}} 1.0" in _scrape(scarce))


def test_a_burst_that_fills_everything_is_served_and_small_requests_after_it(
    scarce: RunningServer,
) -> None:
    """All of the burst are answered in full, nothing is promised beyond the limit meanwhile, and
    afterwards a small request is served within five seconds.
    """
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda _: _complete(scarce, 700, 120), range(24)))
    assert [200] * 24 == [answer.status for answer in answers]
    usages = [answer.json["usage"]["completion_tokens"] for answer in answers]
    assert [120] * 24 == usages
    assert 1 == len({answer.json["choices"][0]["text"] for answer in answers})
    scarce.wait_idle()
    begin = time.monotonic()
    assert 200 == _complete(scarce, 10, 5).status
    assert time.monotonic() - begin < 5
    scarce.wait_idle()
    memory = scarce.get("/health").json["memory"]
    assert 0 == memory["reserved_bytes"] < memory["limit_bytes"] < _LIMIT


def test_what_was_promised_is_compared_with_what_was_needed(scarce: RunningServer) -> None:
    """A spell of work that has ended is in the scrape, within its bound."""
    _complete(scarce, 300, 20)
    scarce.wait_idle()
    wait_until(lambda: "pharos_ledger_prediction_ratio_count" in _scrape(scarce))
    scrape = _scrape(scarce)
    figures = {
        name: float(value)
        for name, value in re.findall(
            r"^pharos_ledger_prediction_ratio(_sum|_count|_bucket{le=\"1.0\"}) (\S+)$",
            scrape,
            re.MULTILINE,
        )
    }
    assert figures["_count"] >= 1
    assert 0 < figures["_sum"] <= figures["_count"]
    assert figures['_bucket{le="1.0"}'] == figures["_count"]
    limit = re.search(r"^pharos_ledger_limit_bytes (\S+)$", scrape, re.MULTILINE)
    assert limit is not None
    assert 0 < float(limit[1]) < _LIMIT


def test_a_model_that_leaves_no_room_is_not_served(
    tiny_model: Path, serving: Callable[..., Any]
) -> None:
    """The operator is told how much it takes and what to do."""
    with serving(tiny_model, memory_limit_bytes=1 << 20, ready=False) as server:
        assert not server.engine.wait_ready(15)
        assert "Raise memory_limit" in server.engine.down_reason


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits another process")
def test_a_limit_on_the_engine_is_survived_as_its_death(
    tiny_model: Path, serving: Callable[..., Any]
) -> None:
    """The system gives the engine nothing more, MLX crashes, and every answer is as undisturbed."""
    with serving(tiny_model, max_batch=4) as server, ThreadPoolExecutor(8) as pool:
        expected = _complete(server, 300, 600).json["choices"][0]["text"]
        asked = [pool.submit(_complete, server, 300 + each, 600) for each in range(8)]
        wait_until(lambda: server.engine.snapshot().running == 4)
        engine = psutil.Process(server.engine.pid)
        half = engine.memory_info().vms // 2
        engine.rlimit(resource.RLIMIT_AS, (half, resource.RLIM_INFINITY))
        answers = [each.result() for each in asked]
        assert [200] * 8 == [answer.status for answer in answers]
        assert expected == answers[0].json["choices"][0]["text"]
        assert 1 <= server.engine.restarts <= 2


def _scrape(server: RunningServer) -> str:
    return server.get("/metrics").body.decode()
