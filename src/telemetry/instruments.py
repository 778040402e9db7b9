"""The instruments of one process, made from the catalog.

Three kinds, by who does what when:

* recorded: an attribute here; a series of it (``at``) is added to or folded into once per finished
  request, in plain numbers (:mod:`.totals`);
* folded: an attribute here; :meth:`FoldedHistogram.fold` once per engine step;
* observed: no attribute; :meth:`Instruments.observe` says where the number is, and
  each collection reads it there.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from opentelemetry.metrics import Observation

from . import attributes as a
from .catalog import BY_NAME, Kind
from .folded import FoldedSet
from .reading import Reading
from .totals import FoldedFamily, Total

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.metrics import CallbackOptions, Meter

    from .reading import Source

__all__ = ["Instruments"]

_log = logging.getLogger(__name__)


class Instruments:
    """Owns the instruments of a meter. Recording is safe from any thread."""

    def __init__(
        self,
        meter: Meter,
        *,
        folded: FoldedSet | None = None,
        model: str = "",
        sources: Mapping[str, Source] | None = None,
    ) -> None:
        """Make what is recorded and folded; what is observed exists once it has a source.

        Args:
            meter: Of the process's only MeterProvider.
            folded: Where the readers look for folded histograms.
            model: The first served name.
            sources: See :meth:`observe`.
        """
        self._meter = meter
        self._lock = threading.Lock()
        self._sources: dict[str, Source] = {}
        """Of every number that is no histogram's, by the name of its instrument."""
        self._failed: set[str] = set()
        """Whose source has failed; the log says so once."""

        self.folded = folded or FoldedSet()
        self.http_request_duration = self._family("http.server.request.duration")
        self.gen_ai_request_duration = self._family("gen_ai.server.request.duration")
        self.gen_ai_time_to_first_token = self._family("gen_ai.server.time_to_first_token")
        self.gen_ai_time_per_output_token = self._family("gen_ai.server.time_per_output_token")
        self.queue_duration = self._family("pharos.request.queue.duration")
        self.prefill_duration = self._family("pharos.request.prefill.duration")
        self.decode_duration = self._family("pharos.request.decode.duration")
        self.request_tokens = self._family("pharos.request.tokens")
        self.longest_choice = self._family("pharos.request.longest_choice")

        self.requests_finished = self._counter("pharos.requests.finished")
        self.tokens = self._counter("pharos.tokens")
        self.refusals = self._counter("pharos.admission.refusals")
        self.requests_resumed = self._counter("pharos.requests.resumed")
        self.prompt_cache_errors = self._counter("pharos.prompt_cache.errors")
        self.prompt_cache_corruptions = self._counter("pharos.prompt_cache.corruptions")
        self.engine_restarts = self._counter("pharos.engine.restarts")
        self.memory_reclaimed = self._counter("pharos.memory.reclaimed")
        self.breaker_transitions = self._counter("pharos.breaker.transitions")
        self.retries = self._counter("pharos.retries")

        folded = self.folded
        self.inter_token = folded.add(BY_NAME["pharos.inter_token.duration"], {a.MODEL.name: model})
        self.batch_size = folded.add(BY_NAME["pharos.engine.batch.size"])
        self.step_duration = folded.add(BY_NAME["pharos.engine.step.duration"])
        self.ledger_prediction = folded.add(BY_NAME["pharos.ledger.prediction.ratio"])

        for name, source in (sources or {}).items():
            self.observe(name, source)

    def observe(self, name: str, source: Source) -> None:
        """Say where an observed instrument's number is.

        Args:
            name: As in the catalog.
            source: Read at each collection.

        Raises:
            ValueError: The instrument is not an observed one, or has a source.
        """
        instrument = BY_NAME.get(name)
        makers = {
            Kind.GAUGE: self._meter.create_observable_gauge,
            Kind.UP_DOWN: self._meter.create_observable_up_down_counter,
            Kind.OBSERVABLE_COUNTER: self._meter.create_observable_counter,
        }
        if instrument is None or instrument.kind not in makers:
            raise ValueError(f"{name} is not an observed instrument")
        self._read_from(name, source, makers[instrument.kind])

    def readings(self, name: str) -> list[Reading]:
        """Return an instrument's numbers as they are now; none of a histogram.

        Args:
            name: As in the catalog. One that was not measured yet has none.
        """
        source = self._sources.get(name)
        if source is None:
            return []
        try:
            found = source()
            if found is None:
                return []
            return [Reading(found)] if isinstance(found, int | float) else list(found)
        except Exception:  # noqa: BLE001 - the border to code of other rooms
            if name not in self._failed:
                _log.exception("the figures of %s cannot be read; they are left out", name)
            self._failed.add(name)
            return []

    def _read_from(self, name: str, source: Source, make: Callable[..., object]) -> None:
        """Let the readers know where an instrument's numbers are."""
        with self._lock:
            if name in self._sources:
                raise ValueError(f"{name} has a source")
            self._sources[name] = source

        def observe(_: CallbackOptions) -> list[Observation]:
            return [Observation(each.value, each.attributes) for each in self.readings(name)]

        instrument = BY_NAME[name]
        make(name, callbacks=[observe], unit=instrument.unit, description=instrument.description)

    def _family(self, name: str) -> FoldedFamily:
        instrument = BY_NAME[name]
        assert instrument.kind is Kind.HISTOGRAM
        return FoldedFamily(instrument, self.folded)

    def _counter(self, name: str) -> Total:
        assert BY_NAME[name].kind is Kind.COUNTER
        total = Total(name)
        self._read_from(name, total.readings, self._meter.create_observable_counter)
        return total
