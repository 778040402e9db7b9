"""Whatever clients invent, the series stay those of the closed sets."""

from __future__ import annotations

import logging

from prometheus_client.parser import text_string_to_metric_families

from mlx_pharos.telemetry.catalog import BY_NAME
from mlx_pharos.telemetry.collector import make_window
from mlx_pharos.telemetry.telemetry import Telemetry, TelemetryOptions
from support.clock import SimulatedClock
from support.simulated import SimulatedRequests

INVENTED = 10_000


def test_10000_invented_requests_open_no_series() -> None:
    """10,000 different models, paths, methods, and values of headers: no label has one of them, and
    the series are no more than after the first thousand.
    """
    clock = SimulatedClock()
    logging.getLogger("mlx_pharos.requests").setLevel(logging.CRITICAL)
    try:
        with Telemetry(
            TelemetryOptions(model="tiny"), window=make_window(clock=clock)
        ) as telemetry:
            requests = SimulatedRequests(telemetry, clock)
            requests.run(1000)
            before = _series(telemetry)
            requests.run(INVENTED - 1000)
            after = _series(telemetry)
    finally:
        logging.getLogger("mlx_pharos.requests").setLevel(logging.NOTSET)
    assert before == after
    assert not any("invented" in label.lower() for _, labels in after for label in labels)
    assert len(after) < 200


def _series(telemetry: Telemetry) -> set[tuple[str, tuple[str, ...]]]:
    """Return the series, but not the buckets of each."""
    text, _ = telemetry.prometheus.scrape()
    names = {each.prometheus_name for each in BY_NAME.values()}
    return {
        (sample.name, tuple(sorted(sample.labels.values())))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.removesuffix("_count") in names
    }
