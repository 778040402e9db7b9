"""The legacy answer: its schema, its names, its query and who may read it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_pharos.resilience.errors import InvalidRequestError, MetricsForbiddenError
from mlx_pharos.telemetry.legacy import (
    CATEGORIES,
    LegacyFigures,
    LegacyQuery,
    check_metrics_access,
    legacy_json,
    legacy_prometheus,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA = json.loads(Path(__file__).with_name("metrics.schema.json").read_text(encoding="utf-8"))
COUNT = st.integers(0, 2**53)
SECONDS = st.floats(0, 1e9)
BYTES = st.none() | st.integers(0, 2**44)
FIGURES = st.builds(
    LegacyFigures,
    timestamp=SECONDS,
    uptime_seconds=SECONDS,
    cache_hits=COUNT,
    cache_misses=COUNT,
    latency_seconds=st.tuples(SECONDS, SECONDS, SECONDS),
    latency_samples=COUNT,
    memory_bytes=BYTES,
    memory_peak_bytes=BYTES,
    memory_initial_bytes=BYTES,
    requests_per_second=SECONDS,
    total_requests=COUNT,
)
ZERO = LegacyFigures(
    timestamp=1.0,
    uptime_seconds=0.0,
    cache_hits=0,
    cache_misses=0,
    latency_seconds=(0.0, 0.0, 0.0),
    latency_samples=0,
    memory_bytes=None,
    memory_peak_bytes=None,
    memory_initial_bytes=None,
    requests_per_second=0.0,
    total_requests=0,
)


@given(figures=FIGURES)
def test_the_answer_keeps_the_contract(figures: LegacyFigures) -> None:
    """Whatever was measured, the JSON fits the schema, and both dialects say the same."""
    answer = legacy_json(figures, CATEGORIES)
    jsonschema_rs.validate(SCHEMA, json.loads(json.dumps(answer)))
    assert answer["cache"]["hits"] == answer["cache"]["cache_hits"]
    assert answer["latency"]["p99_ms"] == answer["latency"]["p99"]
    assert answer["latency"]["samples"] == answer["latency"]["count"]


def test_before_the_first_request_there_are_zeros() -> None:
    """Nothing measured reads as zeros, and memory that cannot be read as unavailable."""
    answer = legacy_json(ZERO, CATEGORIES)
    assert 0.0 == answer["cache"]["hit_rate"]
    assert {0.0} == {answer["latency"][name] for name in ("p50", "p95", "p99", "p50_ms")}
    assert {"unavailable"} == set(answer["memory"].values())


@given(figures=FIGURES, categories=st.sets(st.sampled_from(CATEGORIES)))
def test_categories_filter_both_formats(figures: LegacyFigures, categories: set[str]) -> None:
    """Only the categories asked for are in the answer, with the time and the uptime."""
    answer = legacy_json(figures, categories)
    assert {"timestamp", "uptime_seconds", *categories} == answer.keys()
    names = _exposed(legacy_prometheus(figures, categories)).keys()
    assert "mlx_server_uptime_seconds" in names
    assert ("cache" in categories) == ("mlx_server_cache_hits" in names)
    assert ("throughput" in categories) == ("requests_total" in names)


@given(figures=FIGURES)
def test_the_exposition_has_the_names_of_both_dialects(figures: LegacyFigures) -> None:
    """Every legacy name is exposed once, with help and type, and with the JSON's value."""
    exposed = _exposed(legacy_prometheus(figures, CATEGORIES))
    answer = legacy_json(figures, CATEGORIES)
    pairs: Mapping[str, Any] = {
        "mlx_server_cache_hits": answer["cache"]["hits"],
        "mlx_server_cache_misses": answer["cache"]["misses"],
        "mlx_server_cache_hit_rate": answer["cache"]["hit_rate"],
        "cache_hit_total": answer["cache"]["hits"],
        "cache_miss_total": answer["cache"]["misses"],
        "cache_hit_rate": answer["cache"]["hit_rate"],
        "mlx_server_latency_p50_ms": answer["latency"]["p50_ms"],
        "mlx_server_latency_p95_ms": answer["latency"]["p95_ms"],
        "mlx_server_latency_p99_ms": answer["latency"]["p99_ms"],
        "request_latency_p50": answer["latency"]["p50"],
        "request_latency_p95": answer["latency"]["p95"],
        "request_latency_p99": answer["latency"]["p99"],
        "mlx_server_memory_current_mb": answer["memory"]["current_mb"],
        "mlx_server_memory_peak_mb": answer["memory"]["peak_mb"],
        "mlx_server_memory_growth_mb": answer["memory"]["growth_mb"],
        "memory_current_mb": answer["memory"]["current_mb"],
        "requests_total": answer["throughput"]["total_requests"],
        "requests_per_second": answer["throughput"]["requests_per_second"],
        "mlx_server_throughput_rps": answer["throughput"]["requests_per_second"],
        "mlx_server_uptime_seconds": answer["uptime_seconds"],
    }
    for name, value in pairs.items():
        assert value == exposed.get(name, "unavailable"), name
    assert exposed.keys() <= pairs.keys()


def _exposed(text: str) -> dict[str, float]:
    blocks = re.findall(r"# HELP (\w+) .+\n# TYPE (\w+) (\w+)\n(\w+) (\S+)\n", text)
    assert text == "" or len(blocks) * 3 == text.count("\n")
    assert all(one == two == three for one, two, _, three, _ in blocks)
    assert len({name for name, *_ in blocks}) == len(blocks)
    return {name: float(value) for name, _, _, _, value in blocks}


@pytest.mark.parametrize(
    ("formats", "categories", "param"),
    [
        (["xml"], [], "format"),
        ([""], [], "format"),
        (["json", "prometheus"], [], "format"),
        ([], ["cpu"], "category"),
        ([], ["cache,"], "category"),
        ([], [""], "category"),
    ],
)
def test_another_query_is_refused(formats: list[str], categories: list[str], param: str) -> None:
    """A format or category that does not exist is a 400 that names the parameter."""
    with pytest.raises(InvalidRequestError) as caught:
        LegacyQuery.parse(formats, categories)
    assert param == caught.value.param


def test_the_query_chooses() -> None:
    """JSON with everything is the default; categories may be joined or repeated."""
    assert LegacyQuery("json", frozenset(CATEGORIES)) == LegacyQuery.parse([], [])
    expected = LegacyQuery("prometheus", frozenset({"cache", "memory"}))
    assert expected == LegacyQuery.parse(["prometheus"], ["cache, memory"])
    assert expected == LegacyQuery.parse(["prometheus"], ["cache", "memory"])


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("192.168.1.2", False),
        ("::ffff:10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("", False),
    ],
)
def test_without_a_key_only_this_machine_reads(address: str, *, allowed: bool) -> None:
    """Without a key loopback clients are let in, and nobody else."""
    assert allowed == _allowed("", authorization="", address=address)


def test_a_proxy_does_not_make_everybody_local() -> None:
    """A request that a proxy on this machine forwards is not from this machine."""
    assert not _allowed("", authorization="", address="127.0.0.1", forwarded=True)


def test_a_foreign_name_is_not_this_machine() -> None:
    """A browser here that asks for a name which was pointed here reads nothing, unless it has a key."""
    with pytest.raises(MetricsForbiddenError, match="PHAROS_METRICS_API_KEY"):
        check_metrics_access("", authorization="", address="127.0.0.1", named=False)
    assert _allowed("key", authorization="Bearer key", address="127.0.0.1", named=False)


@pytest.mark.parametrize(
    ("authorization", "allowed"),
    [
        ("Bearer s3cret", True),
        ("bearer  s3cret ", True),
        ("Bearer s3cret2", False),
        ("Bearer", False),
        ("Basic s3cret", False),
        ("s3cret", False),
        ("", False),
    ],
)
def test_with_a_key_only_the_key_opens(authorization: str, *, allowed: bool) -> None:
    """With a key it is needed from everywhere, this machine included."""
    assert allowed == _allowed("s3cret", authorization=authorization, address="127.0.0.1")
    assert allowed == _allowed("s3cret", authorization=authorization, address="10.0.0.1")


def _allowed(key: str, **request: Any) -> bool:
    try:
        check_metrics_access(key, **request)
    except MetricsForbiddenError:
        return False
    return True
