"""A served process full of secrets, of which nothing may be heard: not in spans and metrics either."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from support.collector import attributes_of, collector
from support.patient import patient, run_to_end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric

    from support.collector import Collector
    from support.patient import Patient

__all__ = ["Ending", "ended", "planted"]

_NOBODY = 9
"""A port where nobody listens."""


class Ending(NamedTuple):
    """How a command ended that was not to stay."""

    code: int
    said: str
    """All that it wrote."""


@contextlib.contextmanager
def planted(
    model: Path | str,
    *flags: str,
    hub: int = _NOBODY,
    variables: Mapping[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
) -> Iterator[Patient]:
    """Serve a model out of a directory whose name is a secret, among variables that hold some.

    A collector takes the telemetry, unless the flags name one; when all is over, what it
    received and the whole log are searched, and every request has to be in it.

    Args:
        model: A directory, which is copied, or a name.
        flags: Of ``pharos serve``.
        hub: The port of the model hub, on this machine.
        variables: More environment.
        prepare: Called in the new process before it runs, to set limits.
    """
    mark = _new_mark()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{mark}folder")))
        if "--otlp-endpoint" in flags:
            target = None
        else:
            target = stack.enter_context(collector())
            flags = (*flags, "--otlp-endpoint", target.endpoint)
        if isinstance(model, Path):
            model = shutil.copytree(model, folder / "model")
        environment = _variables(mark, folder, hub) | dict(variables or {})
        with patient(model, *flags, variables=environment, prepare=prepare) as server:
            server.secrets.append(mark)
            server.collector = target
            yield server
        _search(server, target)
        if target is not None and not server.was_killed:
            _judge_arrivals(server, target)


def ended(
    *command: str,
    folder: Path,
    hub: int = _NOBODY,
    variables: Mapping[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
) -> Ending:
    """Run a command of ``pharos`` that ends by itself, among secrets of which it says nothing.

    Args:
        command: With its flags.
        folder: For its caches; no secret, as a person has to be told of places.
        hub: The port of the model hub, on this machine.
        variables: More environment.
        prepare: Called in the new process before it runs, to set limits.
    """
    mark = _new_mark()
    environment = _variables(mark, folder, hub) | {"PHAROS_API_KEY": f"sk-{mark}"}
    code, said = run_to_end(
        *command, variables=environment | dict(variables or {}), prepare=prepare
    )
    assert mark not in said, "a secret was said"
    return Ending(code, said)


def _new_mark() -> str:
    return "planted" + os.urandom(6).hex()


def _variables(mark: str, folder: Path, hub: int) -> dict[str, str]:
    return {
        "HF_TOKEN": f"hf_{mark}token",
        "HF_ENDPOINT": f"http://user:{mark}password@127.0.0.1:{hub}",
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "OTEL_EXPORTER_OTLP_HEADERS": f"x-api-key={mark}header",
        "OTEL_LOGS_EXPORTER": "otlp",
        "PHAROS_CACHE_DIR": str(folder / "cache"),
    }


def _search(server: Patient, target: Collector | None) -> None:
    """Look through all that is left of a server that has ended."""
    places = {"log": "".join(server.log)}
    if target is not None:
        for signal in ("traces", "metrics", "logs"):
            places[signal] = "".join(map(str, target.requests(signal)))
    for place, text in places.items():
        for secret in server.secrets:
            assert secret not in text, f"a secret is in the {place}"


def _judge_arrivals(server: Patient, target: Collector) -> None:
    """A server that ended in order has sent its last words before: each request is counted, and has
    the span of a generation. Spans beyond those that may wait are dropped, and each is counted.
    """
    assert target.spans(), "no span came, so none was judged"
    metrics = target.metrics()
    assert server.sent == _total(metrics.get("pharos.requests.finished"))
    generations = {
        span.span_id for span in target.spans() if "gen_ai.operation.name" in attributes_of(span)
    }
    dropped = _total(metrics.get("pharos.telemetry.dropped"), signal="traces")
    assert server.sent - dropped <= len(generations) <= server.sent


def _total(metric: Metric | None, **attributes: str) -> float:
    """Return the sum of a counter over its series, or over those that have these attributes."""
    points = metric.sum.data_points if metric else ()
    chosen = [point for point in points if attributes.items() <= attributes_of(point).items()]
    return float(sum(point.as_int or point.as_double for point in chosen))
