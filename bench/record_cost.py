"""What telemetry costs per request, and that a million requests leave no memory behind.

Both run in a process of their own: ``python -m bench.record_cost cost|million ENDPOINT``
prints a JSON object.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import psutil

from .receiver import receiver
from .scenarios import Row, Setting

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlx_pharos.telemetry.http import Exchange
    from mlx_pharos.telemetry.telemetry import Telemetry

__all__ = ["RECORD_COST"]

_ROOT = Path(__file__).parent.parent
_CHUNK, _CHUNKS = 50, 60
_FEW, _MANY = 10_000, 1_000_000
_FLUSH = 300
"""Requests between two flushes: their spans fit the queue, so none is dropped."""


def request_cost(setting: Setting) -> list[Row]:
    """CPU time of telemetry per request, at its end and in all: all traces, OTLP, a line as JSON."""
    with receiver() as endpoint:
        sent = [_run("cost", endpoint) for _ in range(setting.repeats)]
        told = [_run("cost", endpoint, OTEL_LOGS_EXPORTER="otlp") for _ in range(setting.repeats)]
    kept = [_run("cost", "") for _ in range(setting.repeats)]
    return [
        Row("request", "at its end, us", [each["end"] for each in sent], "", [], "<= 150"),
        Row("request", "the same, log sent too, us", [each["end"] for each in told], "", [], "<= 150"),
        Row("request", "the same without OTLP, us", [each["end"] for each in kept], "", [], ""),
        Row("request", "answering thread, us", [each["thread"] for each in sent], "", [], ""),
        Row("request", "the same without OTLP, us", [each["thread"] for each in kept], "", [], ""),
        Row(
            "request", "whole process, sending included, us",
            [each["process"] for each in sent], "", [], "",
        ),
    ]  # fmt: skip


def million(_: Setting) -> list[Row]:
    """What the resident set gains from ten thousand simulated requests to a million.

    Buckets of exponential histograms are made as they fill, which takes some MiB
    and ends. An object of 100 bytes that stayed of each request would be 94.
    """
    with receiver() as endpoint:
        found = _run("million", endpoint)
    assert not found["lost"], found
    name, after = "a million requests", [found["few"]]
    return [
        Row(name, "resident set gained, MiB", [found["many"] - found["few"]], "", [], "<= 5"),
        Row(name, "resident set, MiB", [found["many"]], "after ten thousand", after, "", raw=found),
    ]


def _run(what: str, endpoint: str, **variables: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.record_cost", what, endpoint],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        env=os.environ | variables,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _measure_cost(telemetry: Telemetry) -> dict[str, float]:
    """Return microseconds per request, less those of the application itself."""
    from mlx_pharos.telemetry.collector import MetricsCollector  # noqa: PLC0415
    from mlx_pharos.telemetry.http import TelemetryMiddleware  # noqa: PLC0415
    from mlx_pharos.telemetry.recorder import Recorder  # noqa: PLC0415
    from mlx_pharos.telemetry.spans import SpanWriter  # noqa: PLC0415
    from support.whole_answer import answer, ask  # noqa: PLC0415

    collector = MetricsCollector(telemetry.instruments, telemetry.window)
    recorder = Recorder(telemetry.instruments, collector, models={"tiny"})
    ends: list[float] = []

    class Timed(TelemetryMiddleware):
        """Notes what each end takes."""

        def finish(self, exchange: Exchange, *, ended_at: float, written: bool) -> None:
            begin = time.thread_time()
            super().finish(exchange, ended_at=ended_at, written=written)
            ends.append(time.thread_time() - begin)

    observed = Timed(answer, recorder, SpanWriter(telemetry.tracer))
    sides: dict[str, Callable[..., Any]] = {"bare": answer, "observed": observed}
    figures: dict[str, list[tuple[float, float]]] = {"bare": [], "observed": []}
    for number in range(_CHUNKS):
        for name, application in sides.items():
            process, thread = time.process_time(), time.thread_time()
            for _ in range(_CHUNK):
                ask(application)
            thread = time.thread_time() - thread
            telemetry.force_flush()
            process = time.process_time() - process
            if number >= _CHUNKS // 10:  # the first ones warm up
                figures[name].append((1e6 * thread / _CHUNK, 1e6 * process / _CHUNK))
    thread, process = (
        median(each[place] for each in figures["observed"])
        - median(each[place] for each in figures["bare"])
        for place in (0, 1)
    )
    return {"thread": thread, "process": process, "end": 1e6 * median(ends[len(ends) // 10 :])}


def _measure_memory(telemetry: Telemetry, requests: Any) -> dict[str, float]:  # noqa: ANN401
    found: dict[str, float] = {}
    for name, count in (("few", _FEW), ("many", _MANY)):
        while requests.count < count:
            requests.run(_FLUSH)
            telemetry.force_flush()
            telemetry.prometheus.scrape("application/openmetrics-text")
            requests.collector.export_metrics_json()
        gc.collect()
        found[name] = psutil.Process().memory_info().rss / 2**20
    lost = sum(each.value for each in telemetry.losses.readings())
    return found | {"lost": lost, "requests": requests.count}


def main() -> None:
    """Measure in this process."""
    sys.path.append(str(_ROOT / "tests"))
    from mlx_pharos.telemetry.collector import make_window  # noqa: PLC0415
    from mlx_pharos.telemetry.log import configure_log  # noqa: PLC0415
    from mlx_pharos.telemetry.log_writer import LogWriter  # noqa: PLC0415
    from mlx_pharos.telemetry.telemetry import Telemetry, TelemetryOptions  # noqa: PLC0415
    from support.clock import SimulatedClock  # noqa: PLC0415
    from support.simulated import SimulatedRequests  # noqa: PLC0415

    what, endpoint = sys.argv[1:3]
    os.environ["OTEL_METRIC_EXPORT_INTERVAL"] = "3600000"  # flushes bring the metrics
    clock = SimulatedClock()
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        configure_log(style="json", stream=LogWriter(nowhere.fileno()))  # as the server has it
        options = TelemetryOptions(model="tiny", otlp_endpoint=endpoint)
        window = make_window(clock=clock) if what == "million" else make_window()
        with Telemetry(options, window=window) as telemetry:
            if what == "million":
                found = _measure_memory(telemetry, SimulatedRequests(telemetry, clock))
            else:
                found = _measure_cost(telemetry)
        logging.getLogger().handlers.clear()
    print(json.dumps(found))


RECORD_COST: dict[str, Callable[[Setting], list[Row]]] = {
    "request-cost": request_cost,
    "million": million,
}

if __name__ == "__main__":
    main()
