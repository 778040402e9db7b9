"""The same figures under vLLM's names, for boards and gateways that know only those.

Off unless asked for: the colon in these names is meant for recording rules, so
promtool finds fault with them, and every figure would stand twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .catalog import BY_NAME
from .exposition import Family, HistogramSample, Sample

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["ALIASES", "Alias", "add_aliases"]


@dataclass(frozen=True, slots=True)
class Alias:
    """One name of vLLM's, and what it is here."""

    name: str
    instrument: str
    only: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Labels and the values that count; an empty tuple: only where the label is absent."""
    keep: tuple[tuple[str, str], ...] = ()
    """Labels to keep beside ``model_name``, and vLLM's name for each."""
    out_of: str = ""
    """The instrument of the whole, where vLLM has a share."""


_INPUT = (("type", ("input_computed", "input_cached")),)
_OK = (("error_type", ()),)
_NOTHING = Family("", "gauge", "", "")

ALIASES = (
    Alias("vllm:num_requests_running", "pharos.requests.running"),
    Alias("vllm:num_requests_waiting", "pharos.requests.queued"),
    Alias("vllm:kv_cache_usage_perc", "pharos.ledger.reserved", out_of="pharos.ledger.limit"),
    Alias("vllm:prefix_cache_queries", "pharos.tokens", _INPUT),
    Alias("vllm:prefix_cache_hits", "pharos.tokens", (("type", ("input_cached",)),)),
    Alias("vllm:prompt_tokens", "pharos.tokens", _INPUT),
    Alias("vllm:generation_tokens", "pharos.tokens", (("type", ("output",)),)),
    Alias(
        "vllm:request_success",
        "pharos.requests.finished",
        (("finish_reason", ("stop", "length", "tool_calls")),),
        (("finish_reason", "finished_reason"),),
    ),
    Alias("vllm:time_to_first_token_seconds", "gen_ai.server.time_to_first_token"),
    Alias("vllm:inter_token_latency_seconds", "pharos.inter_token.duration"),
    Alias("vllm:time_per_output_token_seconds", "pharos.inter_token.duration"),
    Alias("vllm:e2e_request_latency_seconds", "gen_ai.server.request.duration", _OK),
    Alias("vllm:request_queue_time_seconds", "pharos.request.queue.duration"),
    Alias("vllm:request_prefill_time_seconds", "pharos.request.prefill.duration"),
    Alias("vllm:request_decode_time_seconds", "pharos.request.decode.duration"),
    Alias("vllm:request_prompt_tokens", "pharos.request.tokens", (("type", ("input",)),)),
    Alias("vllm:request_generation_tokens", "pharos.request.tokens", (("type", ("output",)),)),
    Alias("vllm:request_max_num_generation_tokens", "pharos.request.longest_choice"),
)


def add_aliases(families: Iterable[Family], model: str) -> Iterator[Family]:
    """Yield the families under vLLM's names; what was not measured yet has none.

    Args:
        families: Of one scrape.
        model: The served name for series that carry none.
    """
    by_name = {family.name: family for family in families}

    def find(instrument: str) -> Family:
        return by_name.get(BY_NAME[instrument].prometheus_family, _NOTHING)

    for alias in ALIASES:
        found = find(alias.instrument)
        if alias.out_of:
            found = _share(found, find(alias.out_of))
        renamed = _renamed(alias, found, model)
        if renamed.samples:
            yield renamed


def _share(part: Family, whole: Family) -> Family:
    """Divide a gauge without labels by another one."""
    shares: list[Sample | HistogramSample] = [
        Sample({}, some.value / every.value)
        for some, every in zip(part.samples, whole.samples, strict=False)
        if isinstance(some, Sample) and isinstance(every, Sample) and every.value
    ]
    return Family(part.name, part.kind, f"{part.text} Here as a share. {whole.text}", "", shares)


def _renamed(alias: Alias, family: Family, model: str) -> Family:
    merged: dict[tuple[tuple[str, str], ...], Sample | HistogramSample] = {}
    for sample in family.samples:
        if all(_counts(sample.labels.get(label), values) for label, values in alias.only):
            labels = {"model_name": _model(sample, model)}
            labels |= {theirs: sample.labels[ours] for ours, theirs in alias.keep}
            key = tuple(labels.items())
            merged[key] = _sum(merged.get(key), sample, labels)
    return Family(alias.name, family.kind, family.text, "", list(merged.values()))


def _counts(value: str | None, wanted: tuple[str, ...]) -> bool:
    return value in wanted if wanted else value is None


def _model(sample: Sample | HistogramSample, model: str) -> str:
    """Return the name that stands for the model in every family, whatever name a client used."""
    return sample.labels.get("model") or sample.labels.get("gen_ai_response_model") or model


def _sum(
    sum_so_far: Sample | HistogramSample | None,
    sample: Sample | HistogramSample,
    labels: dict[str, str],
) -> Sample | HistogramSample:
    if isinstance(sample, Sample):
        before = sum_so_far.value if isinstance(sum_so_far, Sample) else 0
        return Sample(labels, sample.value + before)
    if not isinstance(sum_so_far, HistogramSample):
        return HistogramSample(labels, sample.bounds, sample.counts, sample.total, sample.marks)
    counts = zip(sum_so_far.counts, sample.counts, strict=True)
    return HistogramSample(
        labels,
        sample.bounds,
        tuple(a + b for a, b in counts),
        sum_so_far.total + sample.total,
        {**sum_so_far.marks, **sample.marks},
    )
