"""A request for a model that is not served is recorded as one for another, and for which is nobody's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from support.client import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from support.client import RunningServer


def test_a_model_that_is_not_served_is_other(tiny_model: Path, serving: Callable[..., Any]) -> None:
    """Its latency has the label of all that clients invent."""
    with serving(tiny_model) as server:
        assert 404 == server.chat(model="mine").status
        wait_until(lambda: bool(_labels(server)))
        (labels,) = _labels(server)
    assert "_OTHER" == labels["gen_ai_request_model"]
    assert "model_not_found" == labels["error_type"]


def _labels(server: RunningServer) -> list[dict[str, str]]:
    """Return the labels of the series of latencies; a request has one once it is recorded."""
    return [
        sample.labels
        for family in text_string_to_metric_families(server.get("/metrics").body.decode())
        for sample in family.samples
        if sample.name == "gen_ai_server_request_duration_seconds_count"
    ]
