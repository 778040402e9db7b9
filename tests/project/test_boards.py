"""Grafana's boards name what there is: in the catalog, and in what a real server shows."""

from __future__ import annotations

import json
import re
import urllib.request
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlx_pharos.telemetry.catalog import BY_NAME
from support.board import BOARDS, labels_of, metrics_of, queries_of, with_values
from support.served import serve_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INSTRUMENTS = {each.prometheus_name: each for each in BY_NAME.values()}
OF_PROMETHEUS = re.compile(r"up|scrape_\w+|otelcol_\w+")
"""Series of Prometheus and of the collector; tests/backends has them from the programs."""
AFTER_AN_EVENT = {
    "pharos_admission_refusals_total",
    "pharos_breaker_state",
    "pharos_breaker_transitions_total",
    "pharos_engine_restarts_total",
    "pharos_ledger_limit_bytes",
    "pharos_ledger_reserved_bytes",
    "pharos_memory_reclaimed_bytes_total",
    "pharos_prompt_cache_corruptions_total",
    "pharos_prompt_cache_errors_total",
    "pharos_requests_resumed_total",
    "pharos_retries_total",
}
"""Without a series until it happens, or where the server has not the part; queries take none for 0."""
VLLM_BOARD = {
    "vllm:e2e_request_latency_seconds": {"bucket", "sum", "count"},
    "vllm:generation_tokens_total": {""},
    "vllm:kv_cache_usage_perc": {""},
    "vllm:num_requests_running": {""},
    "vllm:num_requests_waiting": {""},
    "vllm:prompt_tokens_total": {""},
    "vllm:request_decode_time_seconds": {"sum"},
    "vllm:request_generation_tokens": {"bucket"},
    "vllm:request_max_num_generation_tokens": {"bucket"},
    "vllm:request_prefill_time_seconds": {"sum"},
    "vllm:request_prompt_tokens": {"bucket"},
    "vllm:request_queue_time_seconds": {"sum"},
    "vllm:request_success_total": {""},
    "vllm:time_per_output_token_seconds": {"bucket", "sum", "count"},
    "vllm:time_to_first_token_seconds": {"bucket", "sum", "count"},
}
"""What the board that vLLM publishes asks for."""


@pytest.fixture(scope="module")
def scraped(tiny_model: Path) -> dict[str, set[str]]:
    """The series of a server after two chats, with vLLM's names: each with its labels."""
    with serve_model(tiny_model, "--served-model-name", "tiny", "--vllm-names") as served:
        for _ in range(2):
            body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
            request = urllib.request.Request(
                f"http://{served.address}/v1/chat/completions",
                json.dumps(body | {"max_tokens": 4}).encode(),
                {"Content-Type": "application/json"},
            )
            urllib.request.urlopen(request, timeout=15).read()
        with urllib.request.urlopen(f"http://{served.address}/metrics", timeout=15) as answer:
            text = answer.read().decode()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def _queries() -> Iterator[tuple[str, str, str]]:
    for path in BOARDS:
        for title, query in queries_of(path):
            yield path.stem, title, query


def test_there_are_five_boards_of_panels_that_say_what_they_show() -> None:
    """Overview, latency, engine and memory, prompt cache, telemetry health."""
    assert 5 == len(BOARDS)
    for path in BOARDS:
        panels = json.loads(path.read_text(encoding="utf-8"))["panels"]
        assert all(panel.get("description") for panel in panels if panel["type"] != "row")


def test_every_instrument_is_on_a_board() -> None:
    """What is measured can be seen; only the engine's versions are for queries of one's own."""
    shown = {name for _, _, query in _queries() for name in metrics_of(query)}
    assert {"pharos_engine_info"} == INSTRUMENTS.keys() - shown


def test_every_query_names_instruments_of_the_catalog_and_their_labels() -> None:
    """A renamed instrument, and an attribute that it has not, are found here."""
    for board, title, query in _queries():
        names = {name for name in metrics_of(query) if not OF_PROMETHEUS.fullmatch(name)}
        assert names <= INSTRUMENTS.keys(), (board, title)
        if names:
            attributes = {
                each.name.replace(".", "_")
                for name in names
                for each in INSTRUMENTS[name].attributes
            }
            assert labels_of(with_values(query)) <= attributes | {"instance", "le"}, (board, title)


def test_every_metric_of_the_boards_is_in_a_live_scrape(scraped: dict[str, set[str]]) -> None:
    """With the labels that are asked for; what takes an event has a query that shows 0 without."""
    for board, title, query in _queries():
        for name in metrics_of(query):
            if OF_PROMETHEUS.fullmatch(name):
                continue
            if name in AFTER_AN_EVENT:
                assert "vector(0)" in query or "ledger" in name, (board, title)
                continue
            series = scraped.get(name, scraped.get(f"{name}_count"))
            assert series is not None, (board, title, name)
            matched = labels_of(with_values(query)) - {"instance", "le", "error_type"}
            assert matched <= series, (board, title, name)


def test_the_board_that_vllm_publishes_finds_its_series(scraped: dict[str, set[str]]) -> None:
    """Under vLLM's names, with the labels that its queries match and group by."""
    for name, parts in VLLM_BOARD.items():
        for part in parts:
            series = scraped.get(f"{name}_{part}" if part else name)
            assert series is not None, (name, part)
            assert "model_name" in series
            assert part != "bucket" or "le" in series
    assert "finished_reason" in scraped["vllm:request_success_total"]
