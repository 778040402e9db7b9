"""The series that requests of one kind go to, looked up once for all of them.

A request is recorded in a dozen series. Making their attributes anew for each
request would cost more than counting does; the attributes come from closed
sets, so the kinds are few.
"""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from . import attributes as a

if TYPE_CHECKING:
    from collections.abc import Collection

    from .folded import FoldedHistogram
    from .instruments import Instruments
    from .record import GenerationRecord, RequestRecord
    from .totals import Sum

__all__ = ["GenerationSeries", "SeriesBook"]

_LIMIT = 1000
"""Kinds at most that are remembered, should an open value ever come here by mistake."""


class _Kind(NamedTuple):
    """What generations have in common that go to the same series."""

    operation: str
    model: str
    request_model: str
    finish_reason: str
    error: str


class GenerationSeries:
    """The series of one kind of generations. Each is opened on its first use: none shows empty."""

    def __init__(self, instruments: Instruments, kind: _Kind) -> None:
        self._instruments = instruments
        self._model = {a.MODEL.name: kind.model}
        self._gen_ai = {
            a.GEN_AI_OPERATION.name: kind.operation,
            a.GEN_AI_PROVIDER.name: "mlx",
            a.GEN_AI_RESPONSE_MODEL.name: kind.model,
        }
        if kind.request_model:
            self._gen_ai[a.GEN_AI_REQUEST_MODEL.name] = kind.request_model
        error = {a.ERROR_TYPE.name: kind.error} if kind.error else {}
        self._latency = self._gen_ai | error
        self._finished = self._model | {a.FINISH_REASON.name: kind.finish_reason} | error

    @cached_property
    def latency(self) -> FoldedHistogram:
        """Time from the request's arrival to its end."""
        return self._instruments.gen_ai_request_duration.at(self._latency)

    @cached_property
    def finished(self) -> Sum:
        """Requests that have ended so."""
        return self._instruments.requests_finished.at(self._finished)

    @cached_property
    def first_token(self) -> FoldedHistogram:
        """Time to the first token."""
        return self._instruments.gen_ai_time_to_first_token.at(self._gen_ai)

    @cached_property
    def per_token(self) -> FoldedHistogram:
        """Mean time per token."""
        return self._instruments.gen_ai_time_per_output_token.at(self._gen_ai)

    @cached_property
    def queue(self) -> FoldedHistogram:
        """Time in the queue."""
        return self._instruments.queue_duration.at(self._model)

    @cached_property
    def prefill(self) -> FoldedHistogram:
        """Time of the prefill."""
        return self._instruments.prefill_duration.at(self._model)

    @cached_property
    def decode(self) -> FoldedHistogram:
        """Time of the decode."""
        return self._instruments.decode_duration.at(self._model)

    @cached_property
    def input_size(self) -> FoldedHistogram:
        """Tokens of the prompt."""
        return self._instruments.request_tokens.at(self._typed("input"))

    @cached_property
    def output_size(self) -> FoldedHistogram:
        """Tokens of the answer."""
        return self._instruments.request_tokens.at(self._typed("output"))

    @cached_property
    def longest_choice(self) -> FoldedHistogram:
        """Tokens of the longest choice."""
        return self._instruments.longest_choice.at(self._model)

    @cached_property
    def computed(self) -> Sum:
        """Prompt tokens that were computed."""
        return self._instruments.tokens.at(self._typed("input_computed"))

    @cached_property
    def cached(self) -> Sum:
        """Prompt tokens that came from the prompt cache."""
        return self._instruments.tokens.at(self._typed("input_cached"))

    @cached_property
    def output(self) -> Sum:
        """Tokens of answers."""
        return self._instruments.tokens.at(self._typed("output"))

    def _typed(self, kind: str) -> dict[str, str]:
        return self._model | {a.TOKEN_TYPE.name: kind}


class SeriesBook:
    """Finds the series of a record. Safe from any thread."""

    def __init__(self, instruments: Instruments, models: Collection[str]) -> None:
        """Look up in ``instruments``; ``models`` are the served names."""
        self._instruments = instruments
        self._models = frozenset(models)
        self._lock = threading.Lock()
        self._http: dict[tuple[str, str, int, str], FoldedHistogram] = {}
        self._generations: dict[_Kind, GenerationSeries] = {}

    def http(self, record: RequestRecord) -> FoldedHistogram:
        """Return the series of a request's duration."""
        error = a.ERROR_TYPE.close(record.error_type) if record.error_type else ""
        key = (record.method, record.route, record.status, error)
        found = self._http.get(key)
        if found is None:
            found = self._instruments.http_request_duration.at(_http_attributes(*key))
            with self._lock:
                if len(self._http) < _LIMIT:
                    self._http[key] = found
        return found

    def generation(self, record: GenerationRecord) -> GenerationSeries:
        """Return the series of a generation."""
        asked, error = record.request_model, record.error_type
        kind = _Kind(
            record.operation,
            record.model,
            a.close_model(asked, self._models) if asked else "",
            record.finish_reason,
            a.ERROR_TYPE.close(error) if error else "",
        )
        found = self._generations.get(kind)
        if found is None:
            found = GenerationSeries(self._instruments, kind)
            with self._lock:
                if len(self._generations) < _LIMIT:
                    self._generations[kind] = found
        return found


def _http_attributes(method: str, route: str, status: int, error: str) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {a.HTTP_METHOD.name: method, a.HTTP_STATUS.name: status}
    if route:
        attributes[a.HTTP_ROUTE.name] = route
    if error:
        attributes[a.ERROR_TYPE.name] = error
    return attributes
