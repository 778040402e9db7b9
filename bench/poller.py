"""Reads a server's metrics again and again from a process of its own, and times each answer.

``python -m bench.poller PORT PERIOD PATH...`` reads each path once in so many seconds, one after the
other with a pause between, so that none waits for what the answer before it left to do. It prints
one JSON object when its standard input closes, after a line that says it has begun: by path a list of
when each answer was asked for, by the monotonic clock, and how many seconds it took.
"""

from __future__ import annotations

import http.client
import itertools
import json
import select
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["SCRAPES", "Poll", "polling"]

Poll = tuple[float, float]
"""When an answer was asked for, by the monotonic clock, and how many seconds it took."""

SCRAPES = ("/metrics", "/v1/metrics")
_ACCEPT = (
    "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
)
"""Prometheus asks for OpenMetrics, with exemplars, which takes longest."""


@contextmanager
def polling(
    port: int, period: float, paths: Sequence[str] = SCRAPES
) -> Iterator[dict[str, list[Poll]]]:
    """Poll while the context lasts; the dictionary has the polls by path after it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.poller", str(port), str(period), *paths],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    found: dict[str, list[Poll]] = {}
    assert process.stdout is not None
    # A Python that starts takes more of a small machine than all polls of a round.
    process.stdout.readline()
    try:
        yield found
    finally:
        answer, _ = process.communicate(timeout=60)
        found.update(json.loads(answer))


def main() -> None:
    """Poll until nobody listens any more."""
    port, paths = int(sys.argv[1]), sys.argv[3:]
    pause = float(sys.argv[2]) / len(paths)
    polls: dict[str, list[Poll]] = {path: [] for path in paths}
    # Kept open, as Prometheus does.
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    print("polling", flush=True)
    for path in itertools.cycle(paths):
        if select.select([sys.stdin], [], [], pause)[0]:
            break
        begin = time.monotonic()
        connection.request("GET", path, headers={"Accept": _ACCEPT})
        response = connection.getresponse()
        response.read()
        polls[path].append((begin, time.monotonic() - begin))
        assert response.status == http.HTTPStatus.OK, response.status
    print(json.dumps(polls))


if __name__ == "__main__":
    main()
