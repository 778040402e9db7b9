"""A server on which traffic is reconciled: with bounds for everything, and everybody who keeps books."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from mlx_pharos.engine.engine_state import Endurance
from mlx_pharos.resilience.api_keys import ApiKey
from mlx_pharos.resilience.restarts import RestartPolicy
from mlx_pharos.telemetry.collector import make_window
from mlx_pharos.telemetry.telemetry import Telemetry, TelemetryOptions
from support import ordeal
from support.access_log import access_log
from support.books import MINE, Books, epoch_offset_ns
from support.client import wait_until
from support.collector import attributes_of, collector
from support.dangerous_model import write_dangerous_model
from support.request_kinds import BODY_LIMIT, CONTEXT_LENGTH, GREEDY_KEY, GREEDY_TOKENS
from support.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    from support.access_log import AccessLog
    from support.client import RunningServer
    from support.collector import Collector

__all__ = ["Stage", "set_stage"]

_KEY = "s3cret"
_SECONDS = 20.0


class Stage(NamedTuple):
    """The server, its traffic, and where the books come from."""

    server: RunningServer
    traffic: Traffic
    telemetry: Telemetry
    collector: Collector
    log: AccessLog

    def books(self) -> Books:
        """Close the books and return them. The server has shut down, but for its operations."""
        sent = len(self.traffic.seen)
        wait_until(lambda: len(self.log.lines()) >= sent, _SECONDS)
        legacy = self.server.observe("/v1/metrics").json
        scrape = self.server.observe("/metrics").body.decode()
        wait_until(lambda: len(self.log.lines()) >= sent + len(MINE))
        self.telemetry.force_flush()
        self.telemetry.shutdown()
        spans = self.collector.spans()
        return Books(
            traffic=self.traffic,
            lines=[line for line in self.log.lines() if line.get("route") not in MINE],
            spans=[span for span in spans if attributes_of(span).get("http.route") not in MINE],
            otlp=self.collector.metrics(),
            prometheus={each.name: each.samples for each in text_string_to_metric_families(scrape)},
            legacy=legacy,
            epoch_offset_ns=epoch_offset_ns(self.server),
        )


@contextmanager
def set_stage(directory: Path, serving: Callable[..., Any], *, seed: int) -> Iterator[Stage]:
    """Serve a dangerous model with small bounds; traffic of the seed's choice keeps clear of most.

    Args:
        directory: For the model.
        serving: The fixture of that name.
        seed: Of the traffic.
    """
    model = write_dangerous_model(directory, context_length=CONTEXT_LENGTH)
    with access_log() as log, collector() as target:
        options = TelemetryOptions(model="tiny", otlp_endpoint=target.endpoint)
        telemetry = Telemetry(options, window=make_window())
        with serving(
            model,
            telemetry=telemetry,
            trust_remote_code=True,
            memory_limit_bytes=256 << 20,
            endurance=Endurance(crash_budget=1),
            restarts=RestartPolicy(limit=9, longest_delay_seconds=0.25),
            api_keys=(ApiKey.of("app", _KEY), ApiKey.of("greedy", GREEDY_KEY)),
            tokens_per_minute=GREEDY_TOKENS // 2,
            max_batch=ordeal.MAX_BATCH,
            max_queue=ordeal.MAX_QUEUE,
            queue_seconds=6.0,
            max_body_bytes=BODY_LIMIT,
            operations_port=0,
            drain_seconds=60.0,
        ) as server:
            yield Stage(server, Traffic(server, seed, key=_KEY), telemetry, target, log)
