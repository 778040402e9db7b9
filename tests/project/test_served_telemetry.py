"""``pharos serve`` with a collector: what arrives there, and what its absence costs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from support.collector import attributes_of, collector, failing_collector
from support.polling import until
from support.served import Served, serve_model

if TYPE_CHECKING:
    from pathlib import Path

TRACE = "0af7651916cd43dd8448eb211c80319c"
FLAGS = ("--served-model-name", "tiny", "--max-tokens", "8")


def _chat(address: str, flags: str = "01") -> dict[str, Any]:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
    request = urllib.request.Request(
        f"http://{address}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={
            "Content-Type": "application/json",
            "traceparent": f"00-{TRACE}-b7ad6b7169203331-{flags}",
        },
    )
    with urllib.request.urlopen(request, timeout=15) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def test_a_request_is_a_trace_at_the_collector(tiny_model: Path) -> None:
    """Spans continue the caller's trace, and carry the figures of the answer, like the metrics."""
    with collector() as target:
        with serve_model(tiny_model, *FLAGS, "--otlp-endpoint", target.endpoint) as served:
            usage = _chat(served.address)["usage"]
        spans = {span.name: span for span in target.spans()}
        assert {"POST /v1/chat/completions", "chat tiny", "queue", "prefill", "decode"} <= set(
            spans
        )
        assert {TRACE} == {span.trace_id.hex() for span in spans.values()}
        told = attributes_of(spans["chat tiny"])
        assert usage["completion_tokens"] == told["gen_ai.usage.output_tokens"]
        points = target.metrics()["pharos.tokens"].sum.data_points
        output = [each for each in points if attributes_of(each)["type"] == "output"]
        assert [usage["completion_tokens"]] == [each.as_int or each.as_double for each in output]


def test_a_caller_decides_nothing_without_propagators(tiny_model: Path) -> None:
    """Each request is a trace of the server's own, and its sampler's share is kept of all of them."""
    variables = {"OTEL_PROPAGATORS": "none", "OTEL_TRACES_SAMPLER": "parentbased_always_on"}
    with collector() as target:
        flags = [*FLAGS, "--otlp-endpoint", target.endpoint]
        with serve_model(tiny_model, *flags, variables=variables) as served:
            _chat(served.address)
            _chat(served.address, flags="00")
        ids = {span.trace_id.hex() for span in target.spans()}
        assert (2, True) == (len(ids), TRACE not in ids)


@pytest.mark.parametrize("fault", ["dead", "silent", "unavailable"])
def test_an_absent_collector_is_not_noticed(fault: str, tiny_model: Path) -> None:
    """Requests are answered, and SIGTERM ends the server with 0 within the telemetry's budget.

    All three signals are sent, at once. The log says that they are lost in one
    line, and once more at the end; the server's metrics count them.
    """
    variables = {
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_BLRP_SCHEDULE_DELAY": "20",
        "OTEL_BSP_SCHEDULE_DELAY": "20",
        "OTEL_METRIC_EXPORT_INTERVAL": "200",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "0.3",
    }
    with failing_collector(fault) as endpoint:
        flags = [*FLAGS, "--otlp-endpoint", endpoint]
        with serve_model(tiny_model, *flags, variables=variables) as served:
            for _ in range(5):
                begin = time.monotonic()
                _chat(served.address)
                assert time.monotonic() - begin < 3.0
            # An access line and five spans of each, at least.
            until(lambda: _dropped(served.address, "logs") >= 5)
            until(lambda: _dropped(served.address, "traces") >= 25)
            until(lambda: _dropped(served.address, "metrics") > 0)
            until(lambda: _complaints(served))
            assert 1 == len(_complaints(served))
            begin = time.monotonic()
        assert time.monotonic() - begin < 8.0
        (last,) = [line for line in served.lines if "before the end" in line]
        assert re.search(r"metrics [1-9]\d* \((export_failed|shutdown)\)", last)


def _complaints(served: Served) -> list[str]:
    return [line for line in served.lines if "does not reach the collector" in line]


def _dropped(address: str, signal: str) -> float:
    """Read how much of a signal the server says is lost."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    series = rf'^pharos_telemetry_dropped_total\{{signal="{signal}",.* (\S+)$'
    return sum(map(float, re.findall(series, text, re.MULTILINE)))


def test_the_older_servers_key_is_asked_for(tiny_model: Path) -> None:
    """With METRICS_API_KEY set, /metrics is for those who send it."""
    with serve_model(tiny_model, *FLAGS, variables={"METRICS_API_KEY": "geheim"}) as served:
        for path in ("/metrics", "/v1/metrics"):
            url = f"http://{served.address}{path}"
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(url, timeout=5)
            assert 403 == refused.value.code
            refused.value.close()
            request = urllib.request.Request(url, headers={"Authorization": "Bearer geheim"})
            with urllib.request.urlopen(request, timeout=5) as answer:
                assert 200 == answer.status


@pytest.mark.parametrize(("command", "code"), [("serve", 2), ("doctor", 1)])
def test_variables_that_are_wrong_are_said_and_nothing_starts(
    command: str, code: int, tiny_model: Path
) -> None:
    """In one line each and before the SDK reads them: no traceback, and nobody sees a header's key."""
    variables = {
        "OTEL_BSP_MAX_QUEUE_SIZE": "1e4",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=a,Bearer geheim",
        "OTEL_METRICS_EXEMPLAR_FILTER": "x",
        "OTEL_PROPAGATORS": "x",
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "x",
        "OTEL_TRACES_SAMPLER": "typo",
    }
    flags = ["--model", str(tiny_model), "--port", "0", "--otlp-endpoint", "http://127.0.0.1:9"]
    done = subprocess.run(
        [sys.executable, "-m", "mlx_pharos", command, *flags],
        env=os.environ | variables, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert code == done.returncode, said
    assert all(
        1 == len(re.findall(rf"^.*{name} .*should be", said, re.MULTILINE)) for name in variables
    )
    assert "Traceback" not in said
    assert "geheim" not in said


def test_a_server_starts_with_empty_variables(tiny_model: Path) -> None:
    """They count as unset, also where the SDK takes them for a wrong value, or for no limit."""
    names = ["METRICS_EXEMPLAR_FILTER", "TRACES_SAMPLER", "EXPORTER_OTLP_COMPRESSION"]
    variables = {f"OTEL_{name}": "" for name in names}
    with collector() as target:
        flags = [*FLAGS, "--otlp-endpoint", target.endpoint]
        with serve_model(tiny_model, *flags, variables=variables) as served:
            _chat(served.address)
        assert not [line for line in served.lines if "sampler" in line]
        assert {TRACE} == {span.trace_id.hex() for span in target.spans()}
