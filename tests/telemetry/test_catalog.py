"""The catalog: what is declared is what is made, and every set of attributes is closed."""

from __future__ import annotations

import random
import re
import string

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from mlx_pharos.telemetry import attributes as a
from mlx_pharos.telemetry.catalog import BY_NAME, CATALOG, Kind
from mlx_pharos.telemetry.folded import FoldedSet
from mlx_pharos.telemetry.instruments import Instruments
from mlx_pharos.telemetry.reading import Reading
from mlx_pharos.telemetry.totals import FoldedFamily, Total

OBSERVED = {Kind.GAUGE, Kind.UP_DOWN, Kind.OBSERVABLE_COUNTER}


def test_names_are_unique_and_wellformed() -> None:
    """No name stands twice, and each is dotted lower case, for Prometheus too."""
    names = [each.name for group in CATALOG.values() for each in group]
    assert len(names) == len(set(names)) == len(BY_NAME)
    families = [each.prometheus_family for each in BY_NAME.values()]
    assert len(families) == len(set(families))
    for name, family in zip(names, families, strict=True):
        assert re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)+", name), name
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family), family
        assert not family.endswith("_total")


@pytest.mark.parametrize("instrument", BY_NAME.values(), ids=lambda each: each.name)
def test_every_declaration_is_complete(instrument: object) -> None:
    """Every instrument says what it is; every attribute has its values or where they come from."""
    spec = BY_NAME[instrument.name]  # type: ignore[attr-defined]
    assert spec.description.endswith(".")
    assert spec.is_histogram == bool(spec.buckets)
    assert list(spec.buckets) == sorted(set(spec.buckets))
    for attribute in spec.attributes:
        assert bool(attribute.values) != bool(attribute.source), attribute.name
    assert len({each.name for each in spec.attributes}) == len(spec.attributes)


def test_every_instrument_can_be_used() -> None:
    """All that the catalog declares is made and collected under its name and unit."""
    reader = InMemoryMetricReader()
    folded = FoldedSet()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    observed = {name for name, spec in BY_NAME.items() if spec.kind in OBSERVED}
    instruments = Instruments(
        provider.get_meter("t"),
        folded=folded,
        sources={name: lambda: [Reading(1.0, {"a": "b"})] for name in observed},
    )
    for value in vars(instruments).values():
        if isinstance(value, FoldedFamily):
            value.at({}).fold(1.0)
        elif isinstance(value, Total):
            value.add(1)
    data = reader.get_metrics_data()
    assert data is not None
    found = {
        metric.name: metric.unit
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    found |= {each.instrument.name: each.instrument.unit for each in folded.histograms}
    assert {name: spec.unit for name, spec in BY_NAME.items()} == found


def test_a_source_is_for_one_observed_instrument() -> None:
    """A name that is unknown, recorded, or has a source already is refused."""
    instruments = Instruments(MeterProvider(shutdown_on_exit=False).get_meter("t"))
    instruments.observe("pharos.engine.up", lambda: 1)
    for name in ("pharos.engine.up", "pharos.tokens", "made.up"):
        with pytest.raises(ValueError, match=name):
            instruments.observe(name, lambda: 1)


def test_what_clients_invent_is_one_value() -> None:
    """Of 10,000 invented methods, errors and models, none becomes a value of its own."""
    draw = random.Random(11)
    served = ("tiny", "tiny-2")
    seen = set()
    for _ in range(10_000):
        text = "".join(draw.choices(string.printable + "äé\x00\ud800", k=draw.randrange(0, 40)))
        seen |= {a.HTTP_METHOD.close(text), a.ERROR_TYPE.close(text), a.close_model(text, served)}
    assert seen == {a.OTHER}
    assert ("POST", "queue_full") == (
        a.HTTP_METHOD.close("POST"),
        a.ERROR_TYPE.close("queue_full"),
    )
    assert a.close_model("tiny-2", served) == "tiny-2"
