"""A request's spans travel as one, and arrive, are lost and are counted one by one."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mlx_pharos.telemetry.batching import Batcher, BatchLimits
from mlx_pharos.telemetry.collector import make_window
from mlx_pharos.telemetry.losses import Losses, ThrottledLog
from mlx_pharos.telemetry.telemetry import Telemetry, TelemetryOptions
from support.clock import SimulatedClock
from support.collector import collector, dead_port
from support.simulated import SimulatedRequests
from support.whole_answer import answer, ask

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pytest

SPANS = 5
"""Of a request that was answered in whole: HTTP, generation, queue, prefill, decode."""


@contextmanager
def _asked(endpoint: str, count: int, **options: Any) -> Iterator[Telemetry]:
    """Run telemetry with so many whole answers in it."""
    clock = SimulatedClock()
    with Telemetry(
        TelemetryOptions(model="tiny", otlp_endpoint=endpoint),
        window=make_window(clock=clock),
        **options,
    ) as telemetry:
        requests = SimulatedRequests(telemetry, clock)
        requests.middleware._application = answer
        for _ in range(count):
            ask(requests.middleware)
        yield telemetry


def test_every_span_arrives_in_batches_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many spans a request has, no export has more than the limit, and all are sent."""
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "12")
    with collector() as target:
        with _asked(target.endpoint, 10):
            pass
        sizes = [
            len(request.resource_spans[0].scope_spans[0].spans)
            for request in target.requests("traces")
        ]
        spans = target.spans()
    assert 10 * SPANS == len(spans) == len({span.span_id for span in spans})
    assert max(sizes) <= 12
    whole = {span.span_id for span in spans if span.name == "chat tiny"}
    for span in spans:
        if span.name in {"queue", "prefill", "decode"}:
            assert span.parent_span_id in whole


def test_each_lost_span_counts() -> None:
    """What a collector never got is as many spans as it would have got."""
    with _asked(f"http://127.0.0.1:{dead_port()}", 3) as telemetry:
        pass
    assert 3 * SPANS == telemetry.losses.count("traces")


def test_another_processor_sees_each_span() -> None:
    """A processor of somebody else's gets the spans one by one, with what they say."""
    exporter = InMemorySpanExporter()
    with _asked("", 1, span_processors=[SimpleSpanProcessor(exporter)]):
        pass
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert {"POST /v1/chat/completions", "chat tiny", "queue", "prefill", "decode"} == set(spans)
    whole = spans["POST /v1/chat/completions"]
    assert {"http.request.method": "POST", "http.response.status_code": 200}.items() <= dict(
        whole.attributes or {}
    ).items()
    assert '"http.route": "/v1/chat/completions"' in whole.to_json()


def test_a_trace_that_is_not_sampled_has_no_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampler's no is heeded for the whole request."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    with collector() as target:
        with _asked(target.endpoint, 3):
            pass
        assert [] == target.spans()


def _batcher(export: Any, *, queue: int, batch: int) -> tuple[Batcher[str], Losses]:
    losses = Losses(ThrottledLog())
    limits = BatchLimits(queue=queue, batch=batch, delay_seconds=60)
    return Batcher(export, signal="traces", losses=losses, limits=limits), losses


def test_sizes_count_in_the_limits() -> None:
    """Items that are larger than one fill the queue sooner, and are lost as what they are."""
    sent: list[list[str]] = []

    def export(batch: Sequence[str]) -> bool:
        sent.append(list(batch))
        return True

    batcher, losses = _batcher(export, queue=10, batch=100)
    for name in ("a", "b", "c"):
        batcher.put(name, 4)
    assert 4 == losses.count("traces", "queue_full")
    batcher.flush()
    assert [["a", "b"]] == sent
    batcher.close(5)


def test_what_is_larger_than_the_queue_goes_alone() -> None:
    """A request with more spans than the queue holds is sent where nothing else waits."""
    sent: list[str] = []
    done = threading.Event()

    def export(batch: Sequence[str]) -> bool:
        sent.extend(batch)
        done.set()
        return True

    batcher, losses = _batcher(export, queue=2, batch=2)
    batcher.put("wide", 5)
    assert done.wait(10)
    batcher.close(5)
    assert (["wide"], 0) == (sent, losses.count("traces"))
