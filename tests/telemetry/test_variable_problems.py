"""What OpenTelemetry's variables may be: said before the SDK warns, guesses or raises."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from opentelemetry.util.re import parse_env_headers

from mlx_pharos.telemetry.batching import BatchLimits
from mlx_pharos.telemetry.otlp import batch_limits, otlp_problems
from mlx_pharos.telemetry.variables import drop_empty_variables

ENDPOINT = "http://127.0.0.1:4318"
OTLP = "OTEL_EXPORTER_OTLP"
KEY = "k7Jq0secret"
LIMITS = (
    "OTEL_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
)
ALL_LIKE_THE_SDK = (
    "from opentelemetry.sdk.trace import TracerProvider; TracerProvider()\n"
    "from opentelemetry.sdk.metrics import MeterProvider; MeterProvider()\n"
    "from opentelemetry.sdk._logs import LoggerProvider; LoggerProvider()\n"
    "from opentelemetry import propagate"
)


def _problems(**variables: str) -> dict[str, str]:
    """Return what is said of variables, by name."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        return dict(otlp_problems(ENDPOINT))


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        *(
            (f"{prefix}_{name}", value, "a whole number greater than 0")
            for prefix in ("OTEL_BSP", "OTEL_BLRP")
            for name, value in (
                ("MAX_QUEUE_SIZE", "1e4"),
                ("MAX_EXPORT_BATCH_SIZE", "0"),
                ("SCHEDULE_DELAY", "2500.5"),
                ("EXPORT_TIMEOUT", "99999999999"),
            )
        ),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1e300", "a number greater than 0, at most 2147483647"),
        ("OTEL_METRIC_EXPORT_TIMEOUT", "soon", "a number greater than 0"),
        (f"{OTLP}_LOGS_TIMEOUT", "0", "a number greater than 0"),
        *(
            (name, value, "a whole number, 0 or more")
            for name in LIMITS
            for value in ("x", "-1", "1.5", "unset")
        ),
        ("OTEL_TRACES_SAMPLER", "typo", "always_on, always_off, parentbased_always_on, "),
        ("OTEL_TRACES_SAMPLER", " always_off", "parentbased_always_off, traceidratio or"),
        ("OTEL_METRICS_EXEMPLAR_FILTER", "x", "should be trace_based"),
        ("OTEL_METRICS_EXEMPLAR_FILTER", "always_off", "should be trace_based"),
        ("OTEL_PROPAGATORS", "b3", "none, or of baggage, tracecontext, with commas"),
        ("OTEL_PROPAGATORS", "tracecontext,", "none, or of baggage, tracecontext"),
        ("OTEL_PYTHON_CONTEXT", "x", "should be contextvars_context"),
        ("OTEL_SDK_DISABLED", "1", "true or false"),
        (f"{OTLP}_METRICS_TEMPORALITY_PREFERENCE", "x", "cumulative, delta or lowmemory"),
        (f"{OTLP}_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "x", "or explicit_bucket_histogram"),
        (f"{OTLP}_COMPRESSION", "zstd", "gzip or deflate or none"),
        (f"{OTLP}_METRICS_COMPRESSION", "br", "gzip or deflate or none"),
        ("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "yes", "true or false"),
        ("OTEL_RESOURCE_ATTRIBUTES", "team=a,b", "name=value with commas between; entry 2 is not"),
    ],
)
def test_what_is_not_offered_is_said(name: str, value: str, wanted: str) -> None:
    """Each is named, with what it may be."""
    assert [name] == [*(problems := _problems(**{name: value}))]
    assert wanted in problems[name]


@pytest.mark.parametrize("sampler", ["traceidratio", "parentbased_traceidratio"])
@pytest.mark.parametrize("value", ["0,1", "10", "-0.1", "10%", "nan", " "])
def test_a_ratio_is_a_share(sampler: str, value: str) -> None:
    """The SDK would keep every trace."""
    problems = _problems(OTEL_TRACES_SAMPLER=sampler, OTEL_TRACES_SAMPLER_ARG=value)
    assert {
        "OTEL_TRACES_SAMPLER_ARG": f"should be a number from 0 to 1; it is {value!r}"
    } == problems


def test_a_sampler_without_an_argument_has_none() -> None:
    """What the sampler does not read may be anything."""
    assert {} == _problems(OTEL_TRACES_SAMPLER="always_on", OTEL_TRACES_SAMPLER_ARG="endpoint=x")


def test_what_is_offered_is_taken() -> None:
    """In each spelling that the SDK reads, and the numbers are those that were asked for."""
    variables = {
        **dict.fromkeys(LIMITS, "64"),
        "OTEL_BSP_MAX_QUEUE_SIZE": "10000",
        "OTEL_BSP_SCHEDULE_DELAY": "2500",
        "OTEL_METRIC_EXPORT_INTERVAL": "1e4",
        f"{OTLP}_TIMEOUT": "0.5",
        "OTEL_TRACES_SAMPLER": "ParentBased_TraceIdRatio",
        "OTEL_TRACES_SAMPLER_ARG": "0.1",
        "OTEL_METRICS_EXEMPLAR_FILTER": "trace_based",
        "OTEL_PROPAGATORS": "tracecontext, baggage",
        "OTEL_PYTHON_CONTEXT": "contextvars_context",
        "OTEL_SDK_DISABLED": "False",
        f"{OTLP}_METRICS_TEMPORALITY_PREFERENCE": "DELTA",
        f"{OTLP}_COMPRESSION": "none",
        f"{OTLP}_TRACES_COMPRESSION": "gzip",
        "OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=a=b%20c, team=x,",
    }
    assert {} == _problems(**variables)
    subprocess.run(
        [sys.executable, "-W", "error", "-c", ALL_LIKE_THE_SDK],
        env={**os.environ, **variables}, check=True, timeout=60,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        assert BatchLimits(queue=10_000, delay_seconds=2.5) == batch_limits("OTEL_BSP")


def test_switched_off_telemetry_is_checked_where_the_sdk_raises() -> None:
    """It is imported all the same; what only exporters would read is not looked at."""
    problems = _problems(
        OTEL_SDK_DISABLED="true",
        OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT="x",
        OTEL_PROPAGATORS="x",
        OTEL_BSP_MAX_QUEUE_SIZE="x",
        OTEL_TRACES_SAMPLER="x",
        OTEL_EXPORTER_OTLP_HEADERS="x",
    )
    assert {"OTEL_PROPAGATORS", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"} == problems.keys()


def test_empty_variables_count_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for the SDK, which raises over some that are empty."""
    names = [*LIMITS, "OTEL_METRICS_EXEMPLAR_FILTER", "OTEL_TRACES_SAMPLER", f"{OTLP}_COMPRESSION"]
    for name in names:
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "chat")
    monkeypatch.setenv("OTHER", "")
    assert [] == otlp_problems(ENDPOINT)
    drop_empty_variables()
    assert ["OTEL_SERVICE_NAME"] == [each for each in os.environ if each.startswith("OTEL_")]
    assert "" == os.environ["OTHER"]


@pytest.mark.parametrize(
    ("headers", "place"),
    [
        (f"Bearer {KEY}", 1),
        (f"x-tenant=a,{KEY}", 2),
        (f"x-tenant=a,,{KEY}=", 0),
        (f'authorization="{KEY}"', 1),
        (f"a b={KEY}", 1),
        (f"={KEY}", 1),
        (f"authorization=Bearer {KEY};x", 1),
        (f"authorization=Bearer\n{KEY}", 1),
        (f"x-tenant=a,authorization={KEY}%0Ax", 2),
        (f"authorization={KEY}%E2%82%AC", 1),
        (f"x%3A={KEY}", 1),
        (f"authorization=Bearer%20{KEY}%3D%2C%C3%A9", 0),
        (f"authorization=Bearer {KEY}==,x-tenant = b", 0),
        ("x-empty=,", 0),
        (f"authorization={KEY}\n", 0),
    ],
)
@pytest.mark.parametrize("signal", ["", "_TRACES", "_METRICS"])
def test_headers_are_said_without_their_values(headers: str, place: int, signal: str) -> None:
    """Which entry is wrong is said, and nothing of it; what is said to be right is sent."""
    name = f"{OTLP}{signal}_HEADERS"
    problems = _problems(**{name: headers})
    assert KEY not in str(problems)
    if place:
        assert [name] == [*problems]
        assert "name=value with commas between" in problems[name]
        assert problems[name].endswith(f"entry {place} is not")
    else:
        assert {} == problems
        entries = [each for each in headers.split(",") if each.strip()]
        assert len(entries) == len(parse_env_headers(headers, liberal=True))


def test_headers_that_nobody_reads_are_not_looked_at() -> None:
    """Those of one signal win over those for all, and nothing is sent of what stays here."""
    own = {f"{OTLP}_{signal}_HEADERS": "a=b" for signal in ("TRACES", "METRICS")}
    assert {} == _problems(**own, **{f"{OTLP}_HEADERS": KEY, f"{OTLP}_LOGS_HEADERS": KEY})


def test_grpc_compresses_in_one_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exporter raises over all other values; its headers' values are ASCII."""
    monkeypatch.setenv(f"{OTLP}_TRACES_PROTOCOL", "grpc")
    name = f"{OTLP}_TRACES_COMPRESSION"
    assert {name: "should be gzip; it is 'none'"} == _problems(**{name: "none"})
    assert {} == _problems(**{name: "gzip", f"{OTLP}_METRICS_COMPRESSION": "none"})
    assert [f"{OTLP}_TRACES_HEADERS"] == [*_problems(**{f"{OTLP}_TRACES_HEADERS": "a=%C3%A9"})]


@pytest.mark.parametrize("name", [f"{OTLP}_CERTIFICATE", f"{OTLP}_TRACES_CLIENT_KEY"])
def test_a_file_for_tls_has_to_be_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is used: without TLS nobody reads it."""
    monkeypatch.setenv(name, "/nowhere/x.pem")
    assert [] == otlp_problems(ENDPOINT)
    (problem,) = otlp_problems("https://collector.example")
    assert (name, "should be a file that can be read; '/nowhere/x.pem' is not") == problem
