"""A request that is cut off is counted as what it was: what came from the cache, and the phases that it
had. The engine says no last word of it; so all is known from what it had said before.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from mlx_pharos.engine.engine_state import Endurance
from mlx_pharos.resilience.restarts import RestartPolicy
from mlx_pharos.telemetry.collector import make_window
from mlx_pharos.telemetry.telemetry import Telemetry, TelemetryOptions
from support.access_log import access_log
from support.client import COMPLETIONS, wait_until
from support.collector import attributes_of, collector
from support.dangerous_model import FAILS, SLOWS, write_dangerous_model

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.access_log import AccessLog
    from support.client import RunningServer
    from support.collector import Collector

_PREFIX = "".join(chr(32 + (place * 7 + place // 90) % 90) for place in range(1500))
_LOOKUP, _FIRST = "prompt_cache.lookup", "first_token"
_FAILED = 2
"""A span's status."""


@dataclass
class _Stage:
    """A server whose prompt cache has a prompt, and what it says of the next request."""

    server: RunningServer
    telemetry: Telemetry
    log: AccessLog
    collector: Collector
    before: dict[str, int]

    def send(self, rest: str = "", **fields: Any) -> socket.socket:
        """Ask for an answer without an end, to a prompt that begins like the one in the cache."""
        prompt = _PREFIX + rest
        body: dict[str, Any] = {"prompt": prompt, "max_tokens": 60_000, "temperature": 0} | fields
        return self.server.send(COMPLETIONS, model="tiny", stream=True, **body)

    def line(self) -> dict[str, Any]:
        """The access line of the second request."""
        wait_until(lambda: len(self.log.lines()) == 2)
        return self.log.lines()[-1]

    def spans(self) -> dict[str, Any]:
        """The spans of the second request, by their names."""
        self.telemetry.force_flush()
        trace = self.line()["trace_id"]
        return {
            span.name.partition(" ")[0]: span
            for span in self.collector.spans()
            if span.trace_id.hex() == trace
        }

    def counted(self) -> dict[str, int]:
        """What the second request added to the counts."""
        after = _counts(self.telemetry)
        return {name: count - self.before[name] for name, count in after.items()}


@contextmanager
def _stage(
    directory: Path, serving: Callable[..., Any], *, crash_budget: int = 0
) -> Iterator[_Stage]:
    model = write_dangerous_model(directory / "model", context_length=65536)
    with access_log() as log, collector() as target:
        options = TelemetryOptions(model="tiny", otlp_endpoint=target.endpoint)
        telemetry = Telemetry(options, window=make_window())
        with serving(
            model,
            telemetry=telemetry,
            trust_remote_code=True,
            endurance=Endurance(crash_budget=crash_budget),
            restarts=RestartPolicy(limit=9, longest_delay_seconds=0.1),
        ) as server:
            body = {"model": "tiny", "prompt": _PREFIX, "max_tokens": 2}
            assert 200 == server.post(COMPLETIONS, body).status
            wait_until(lambda: len(log.lines()) == 1)
            yield _Stage(server, telemetry, log, target, _counts(telemetry))


@pytest.fixture
def stage(tmp_path: Path, serving: Callable[..., Any]) -> Iterator[_Stage]:
    """One on which no request survives its engine."""
    with _stage(tmp_path, serving) as found:
        yield found


def _counts(telemetry: Telemetry) -> dict[str, int]:
    """Tokens by type, and how many samples the histograms of phases have."""
    text, _ = telemetry.prometheus.scrape()
    found = dict.fromkeys(("queue", "prefill", "decode", "input_computed", "input_cached"), 0)
    for name, count in re.findall(
        r"^pharos_(?:request_(?=\w+_duration)|tokens_total\{.*type=\")"
        r"(\w+?)(?:_duration_seconds_count\{.*|\"\}) (\d+)",
        text,
        re.MULTILINE,
    ):
        if name in found:
            found[name] = int(count)
    return found


def _assert_phases(spans: dict[str, Any], cut: str, error: str, *, failed: bool) -> None:
    """The phases follow each other without a gap; the last one ends with the request, and says why."""
    names = ["queue", "prefill", "decode"]
    expected = names[: names.index(cut) + 1]
    assert {*expected} == {*names} & {*spans}
    for before, after in itertools.pairwise(expected):
        assert spans[before].end_time_unix_nano == spans[after].start_time_unix_nano
        assert {} == attributes_of(spans[before])
    last, whole = spans[cut], spans["text_completion"]
    assert whole.end_time_unix_nano == last.end_time_unix_nano > last.start_time_unix_nano
    assert {"error.type": error} == attributes_of(last)
    assert failed == (last.status.code == _FAILED)
    events = [_LOOKUP, _FIRST][: len(expected) - 1]
    assert events == [each.name for each in whole.events]


def _assert_cached(stage: _Stage, spans: dict[str, Any]) -> None:
    """Nearly all of the prompt came from the cache, by line, span, event and counters."""
    line = stage.line()
    assert len(_PREFIX) - 64 < line["cached_tokens"] <= line["prompt_tokens"]
    (lookup,) = [each for each in spans["text_completion"].events if each.name == _LOOKUP]
    name = "gen_ai.usage.cache_read.input_tokens"
    cached = line["cached_tokens"]
    assert cached == attributes_of(lookup)[name] == attributes_of(spans["text_completion"])[name]
    counted = stage.counted()
    assert cached == counted["input_cached"]
    assert line["prompt_tokens"] - cached == counted["input_computed"] < len(_PREFIX) // 2


def _phases(stage: _Stage) -> tuple[int, int, int]:
    counted = stage.counted()
    return counted["queue"], counted["prefill"], counted["decode"]


def test_an_engine_that_dies_in_decode(stage: _Stage) -> None:
    """The prompt was computed: its phases count. Decode was begun, and ended with the error."""
    with stage.send() as connection:
        _read_text(connection)
        os.kill(stage.server.engine.pid, signal.SIGKILL)
        _read_all(connection)
    line = stage.line()
    assert ("error", "engine_died") == (line["finish_reason"], line["error_code"])
    assert line["completion_tokens"] > 0
    spans = stage.spans()
    _assert_cached(stage, spans)
    assert line["prompt_tokens"] >= len(_PREFIX)
    _assert_phases(spans, "decode", "engine_died", failed=True)
    assert (1, 1, 0) == _phases(stage)
    assert line.get("queue_seconds", 0.0) <= line["first_token_seconds"]


def test_a_step_that_fails_in_prefill(stage: _Stage) -> None:
    """The request ends alone, with an error; it had left the queue."""
    with stage.send(FAILS) as connection:
        _read_all(connection)
    line = stage.line()
    assert "error" == line["finish_reason"]
    spans = stage.spans()
    _assert_cached(stage, spans)
    _assert_phases(spans, "prefill", line["error_code"], failed=True)
    assert (1, 0, 0) == _phases(stage)


@pytest.mark.parametrize("decoding", [False, True], ids=["prefill", "decode"])
def test_a_client_that_leaves_during_a_long_step(stage: _Stage, *, decoding: bool) -> None:
    """Nobody waits for the engine's word, which comes when the step is over."""
    connection = stage.send("" if decoding else SLOWS * 2000)
    if decoding:
        _read_text(connection)
    wait_until(lambda: _has_begun(stage.server))
    engine = stage.server.engine.pid
    os.kill(engine, signal.SIGSTOP)
    try:
        connection.close()
        line = stage.line()
        spans = stage.spans()
    finally:
        os.kill(engine, signal.SIGCONT)
    assert ("cancelled", True) == (line["finish_reason"], line["client_left"])
    _assert_cached(stage, spans)
    _assert_phases(spans, "decode" if decoding else "prefill", "client_gone", failed=False)
    assert (1, int(decoding), 0) == _phases(stage)
    stage.server.wait_idle()


def test_a_client_that_leaves_between_two_steps(stage: _Stage) -> None:
    """The engine says when it stopped; that is no other end than the one that it does not tell of."""
    with stage.send() as connection:
        _read_text(connection)
    assert "cancelled" == stage.line()["finish_reason"]
    spans = stage.spans()
    _assert_cached(stage, spans)
    assert {"error.type": "client_gone"} == attributes_of(spans["decode"])
    assert (1, 1, 0) == _phases(stage)
    stage.server.wait_idle()


def test_a_whole_answer_after_an_engines_end(tmp_path: Path, serving: Callable[..., Any]) -> None:
    """What was found in the first engine's cache was not computed, though the next one has none."""
    with _stage(tmp_path, serving, crash_budget=1) as stage:
        with stage.send(max_tokens=4000) as connection:
            _read_text(connection)
            os.kill(stage.server.engine.pid, signal.SIGKILL)
            _read_all(connection)
        line = stage.line()
        assert ("length", 4000) == (line["finish_reason"], line["completion_tokens"])
        spans = stage.spans()
        assert "engine.lost" in {each.name for each in spans["text_completion"].events}
        _assert_cached(stage, spans)
        assert (1, 1, 1) == _phases(stage)


def _read_text(connection: socket.socket) -> None:
    """Read until there is some text."""
    received = b""
    while not re.search(rb'"text":"[^"]', received):
        chunk = connection.recv(65536)
        assert chunk, received
        received += chunk


def _read_all(connection: socket.socket) -> None:
    """Read to the end of the last chunk."""
    received = b""
    while not received.endswith(b"0\r\n\r\n"):
        chunk = connection.recv(65536)
        assert chunk, received
        received += chunk


def _has_begun(server: RunningServer) -> bool:
    flights = list(server.engine._in_flight._flights.values())
    return any(each.generation.has_begun for each in flights)
