"""``python -m bench.soak --minutes 20``: mixed load with random faults, and what it did to a server.

What is asked and how it is harmed is drawn by a seed; how many requests that
makes is the machine's. All stays on this machine and ends by itself. The tiny
model is served by ``pharos serve`` in a process of its own. Faults come one at a
time; between them is time enough that none of them excuses the next.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING

_ROOT = Path(__file__).parent.parent
sys.path.append(str(_ROOT / "tests"))

from support.asks import Ask, Client  # noqa: E402 - the tests' own clients
from support.patient import patient  # noqa: E402
from support.tiny_model import write_tiny_model  # noqa: E402

from .soak_faults import FAULTS, Window  # noqa: E402
from .soak_memory import MemoryWatch, growth, resident  # noqa: E402
from .soak_report import HEADING, class_row  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.asks import Reply
    from support.patient import Patient

_CHAT = "/v1/chat/completions"
_FAULT_GAP = (22.0, 40.0)
"""Seconds between two faults: at most two deaths of the engine within the minute of its breaker."""
_FLAGS = (
    *("--max-batch", "8", "--max-queue", "56", "--hang-timeout", "3"),
    *("--prompt-cache", "8MiB"),  # full after the warm-up, so that what grows then is no cache
)


def _chat(draw: random.Random, words: int, **fields: object) -> Ask:
    text = " ".join(f"word{draw.randrange(1000)}" for _ in range(words))
    message = {"role": "user", "content": text}
    return Ask(_CHAT, {"model": "tiny", "messages": [message], "temperature": 0, **fields})


CLASSES: dict[str, Callable[[random.Random], Ask]] = {
    "short": lambda draw: _chat(draw, 5, max_tokens=16),
    "stream": lambda draw: _chat(draw, 20, max_tokens=120, stream=True),
    "long prompt": lambda draw: _chat(draw, 250, max_tokens=8),
    "choices": lambda draw: _chat(
        draw, 5, max_tokens=32, n=2, temperature=1, seed=draw.getrandbits(32)
    ),
    "cancel": lambda draw: _chat(draw, 5, max_tokens=400, stream=True),
    "bad": lambda draw: _chat(draw, 5, max_tokens=-draw.randrange(1, 9)),
}


class Soak:
    """The threads that ask, the thread that harms, and what they saw."""

    def __init__(self, server: Patient, seed: int) -> None:
        self._server = server
        self._seed = seed
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.replies: dict[str, list[tuple[float, Reply]]] = defaultdict(list)
        """By class, each with when it was sent."""
        self.windows: list[Window] = []
        self.sent_by_faults = 0
        self.broken: list[str] = []
        """Faults that the server did not get over."""

    def run(self, seconds: float) -> None:
        """Ask and harm for so long, then wait for all ends."""
        threads = [
            threading.Thread(target=self._ask, args=(name, place), daemon=True)
            for place, name in enumerate(CLASSES)
        ]
        threads.append(threading.Thread(target=self._harm, daemon=True))
        for thread in threads:
            thread.start()
        self._over.wait(seconds)
        self._over.set()
        for thread in threads:
            thread.join(90)

    def _ask(self, name: str, place: int) -> None:
        draw = random.Random(self._seed * 100 + place)
        while not self._over.is_set():
            leave = draw.randrange(0, 30) if name == "cancel" else None
            client = Client(
                self._server.port,
                CLASSES[name](draw),
                headers=self._server.headers,
                leave_after=leave,
            )
            begin = time.monotonic()
            client.run()
            with self._lock:
                self.replies[name].append((begin, client.reply))
            self._over.wait(draw.uniform(0.0, 0.05))

    def _harm(self) -> None:
        draw = random.Random(self._seed)
        names = list(FAULTS)
        while not self._over.wait(draw.uniform(*_FAULT_GAP)):
            # Each once before any comes again, in an order that is drawn each time.
            if len(self.windows) % len(names) == 0:
                draw.shuffle(names)
            name = names[len(self.windows) % len(names)]
            window = Window(name, time.monotonic())
            self.windows.append(window)
            try:
                self.sent_by_faults += FAULTS[name](self._server, draw)
                self._server.wait_ready()
            except (AssertionError, OSError) as error:
                self.broken.append(f"{name}: {error!r}")
            window.end = time.monotonic() + 2.0


def main() -> int:
    """Run, print the report; return 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = write_tiny_model(Path(folder) / "tiny", context_length=8192)
        with patient(model, *_FLAGS) as server:
            failures = _sequential(server) + _concurrent(server)
            known = server.total("pharos_requests_finished_total")
            soak, watch = Soak(server, arguments.seed), MemoryWatch(server)
            with watch:
                soak.run(60 * arguments.minutes)
            server.wait_idle()
            counted = server.total("pharos_requests_finished_total") - known
            failures += _report(soak, watch, int(counted))
    print("soak:", "no promise broken" if not failures else f"BROKEN: {failures}")
    return 1 if failures else 0


def _sequential(server: Patient) -> list[str]:
    """100 requests of one class, one after the other."""
    draw = random.Random(0)
    _send(server, [CLASSES["stream"](draw) for _ in range(30)])  # buffers and caches fill first
    before = resident(server)
    replies = _send(server, [CLASSES["stream"](draw) for _ in range(100)])
    seconds = [reply.seconds for reply in replies]
    p50, p95 = median(seconds), quantiles(seconds, n=20)[-1]
    more = growth(before, resident(server))
    whole = sum(reply.whole for reply in replies)
    print(
        f"100 sequential: {whole} whole, p50 {p50 * 1e3:.1f} ms, p95 {p95 * 1e3:.1f} ms "
        f"({p95 / p50:.2f} times), resident set {more:+.1%}"
    )
    broken = []
    if whole < 100 or p95 >= 2 * p50:
        broken.append("100 sequential requests")
    return [*broken, "growth over 100 sequential requests"] if more >= 0.05 else broken


def _concurrent(server: Patient) -> list[str]:
    """50 requests at the same time."""
    draw = random.Random(1)
    before = resident(server)
    clients = [
        Client(server.port, CLASSES["stream"](draw), headers=server.headers) for _ in range(50)
    ]
    threads = [threading.Thread(target=client.run) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    more, whole = growth(before, resident(server)), sum(each.reply.whole for each in clients)
    print(f"50 concurrent: {whole} whole, resident set {more:+.1%}")
    broken = ["50 concurrent requests"] if whole < 50 else []
    return [*broken, "growth over 50 concurrent requests"] if more >= 0.10 else broken


def _send(server: Patient, asks: list[Ask]) -> list[Reply]:
    replies = []
    for ask in asks:
        client = Client(server.port, ask, headers=server.headers)
        client.run()
        replies.append(client.reply)
    return replies


def _report(soak: Soak, watch: MemoryWatch, counted: int) -> list[str]:
    failures = [f"not over it: {each}" for each in soak.broken]
    print(HEADING + "\n|---|---|---|---|---|---|---|")
    for name, replies in soak.replies.items():
        row, broken = class_row(name, replies, soak.windows)
        print(row)
        failures += [f"{name}: {dict(broken)}"] if broken else []
    sent = sum(map(len, soak.replies.values())) + soak.sent_by_faults
    faults = dict(Counter(each.name for each in soak.windows))
    print(f"faults: {faults}; sent {sent}, counted by the server {counted}")
    print(f"resident set of the server: {watch.slope()}; {watch.summary()}")
    return failures if sent == counted else [*failures, f"sent {sent}, counted {counted}"]


if __name__ == "__main__":
    raise SystemExit(main())
