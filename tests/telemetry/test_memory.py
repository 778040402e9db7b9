"""Requests leave nothing behind: the full million is ``python -m bench --only million``."""

from __future__ import annotations

import gc
import io
import logging
import sys

from mlx_pharos.telemetry.collector import make_window
from mlx_pharos.telemetry.log import configure_log
from mlx_pharos.telemetry.telemetry import Telemetry, TelemetryOptions
from support.clock import SimulatedClock
from support.collector import collector
from support.simulated import SimulatedRequests

FEW, MANY, AT_ONCE = 1600, 4800, 400


def test_requests_leave_no_memory_behind() -> None:
    """After 4,800 requests of every kind, with invented names, as much is held as after 1,600.

    Blocks of the allocator are counted, not bytes of the process: one block kept
    per request would be 3,200 more. Left out are the exponential buckets, which hold
    an integer each and fill up; a few hundred come and go with the process's other
    threads. Everything was sent, scraped and polled.
    """
    root = logging.getLogger()
    before = root.handlers[:], root.level
    lines = io.StringIO()
    configure_log(style="json", stream=lines)
    clock = SimulatedClock()
    blocks = []
    try:
        with collector() as target:
            options = TelemetryOptions(model="tiny", otlp_endpoint=target.endpoint)
            with Telemetry(options, window=make_window(clock=clock)) as telemetry:
                requests = SimulatedRequests(telemetry, clock)
                for count in (FEW, MANY):
                    while requests.count < count:
                        requests.run(AT_ONCE)
                        telemetry.force_flush()
                        telemetry.prometheus.scrape("application/openmetrics-text")
                        requests.collector.export_metrics_json()
                        lines.truncate(lines.seek(0))
                        target.forget()
                    gc.collect()
                    filled = sum(len(each.read().fine) for each in telemetry.folded.histograms)
                    blocks.append(sys.getallocatedblocks() - filled)
            assert 0 == sum(each.value for each in telemetry.losses.readings())
            assert MANY == telemetry.window.read().total
    finally:
        root.handlers, root.level = before
    assert blocks[1] - blocks[0] < (MANY - FEW) / 3
