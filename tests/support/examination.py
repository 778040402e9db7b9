"""How a server is judged after a fault: five questions, the same for every fault.

1. Did each request end once, and was it counted once?
2. Is every answer that was given whole equal to that of an undisturbed run?
3. Are threads, files, places and memory of server and engine back to where they were?
4. Is nothing secret in any byte of an answer, in the log, the metrics or a span?
5. Did liveness answer all along, and does readiness tell the truth?
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from support.asks import Client, ask_all, draw_asks
from support.bounds import Bounds

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from support.asks import Ask, Reply
    from support.patient import Patient
    from support.tally import Tally

__all__ = ["Examination", "Load"]

_SLOWEST_PROBE = 5.0
"""Seconds for ``/livez``: the promise is one, on a machine that is not busy with what a test does."""
_SETTLE_SECONDS = 20.0


@dataclass
class Load:
    """Requests on their way."""

    clients: list[Client]
    characters: int = 0
    """Of all streams together so far. How many tokens share an event depends on the speed."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, characters: int) -> None:
        """Take note of a text."""
        with self._lock:
            self.characters += characters

    def wait_for_text(self, count: int, timeout: float = 30.0) -> None:
        """Wait until so many characters came, so that a fault meets requests at work."""
        deadline = time.monotonic() + timeout
        while self.characters < count:
            assert time.monotonic() < deadline, f"only {self.characters} characters came"
            time.sleep(0.002)

    @property
    def is_over(self) -> bool:
        """Whether every request has ended."""
        return all(reply.seconds for reply in self.replies)

    @property
    def replies(self) -> list[Reply]:
        """What came, in the order of the requests; to all attempts of those who insist."""
        return [reply for client in self.clients for reply in client.replies]


class Examination:
    """Puts load on a server while something happens to it, and asks the five questions."""

    def __init__(self, server: Patient, tally: Tally, *, seed: int, mark: str) -> None:
        self.server = server
        self.seed = seed
        self._tally = tally
        self._mark = f"/home/{mark}/.ssh hf_{mark} https://user:{mark}@hub.example/{mark}"
        server.secrets.append(mark)
        self._undisturbed: dict[int, Reply] = {}
        server.sent = int(server.total("pharos_requests_finished_total"))
        self._bounds = Bounds(server)
        self._probes: list[tuple[float, int]] = []
        """Of ``/livez``: how long each took, and its status; 0 where there was none."""

    def draw(self, count: int, *, tokens: int = 120, known: bool = True) -> list[Ask]:
        """Return requests of all kinds, fewer than the server has places.

        Args:
            count: How many.
            tokens: Of the longest answer.
            known: Have them answered once without a fault, to know the truth.
        """
        asks = draw_asks(count, self.seed, mark=self._mark, tokens=tokens)
        first = asks if known else asks[:1]
        for ask, truth in zip(first, self._run([self._client(ask) for ask in first]), strict=True):
            assert truth.whole, truth
            self._undisturbed[id(ask)] = truth
        self.server.wait_idle()
        self._bounds.take()
        return asks

    def sent_besides(self, count: int) -> None:
        """Take note of generation requests that a test sent by other means."""
        self.server.sent += count
        self._tally.requests += count

    def send_raw(self, body: bytes) -> bytes:
        """Send a body as a chat request; return the whole answer, its head included."""
        headers = "".join(f"{name}: {value}\r\n" for name, value in self.server.headers.items())
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", self.server.port), 20) as connection:
            connection.sendall(head.encode())
            with contextlib.suppress(OSError):  # refused before all of it was sent
                connection.sendall(body)
            self.sent_besides(1)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while data := connection.recv(65536):
                    answer += data
        self.server.hear(answer)
        return answer

    @contextlib.contextmanager
    def load(
        self,
        asks: Sequence[Ask],
        *,
        leave_after: Sequence[int | None] | None = None,
        headers: Mapping[str, str] | None = None,
        probe: bool = True,
        held: bool = False,
        attempts: int = 1,
    ) -> Iterator[Load]:
        """Send all requests at once; at the end of the block, wait for all of their ends.

        Args:
            asks: What to send.
            leave_after: Events after which each client leaves; None stays.
            headers: What goes with each request, besides the key or another one in its place.
            probe: Whether liveness must answer all along.
            held: Let the engine stand still until it has them all: one that came after a fault
                might be turned away, and rightly.
            attempts: How often each is sent at most, at once again where it was turned away.
        """
        load = Load([])
        leaving = leave_after or [None] * len(asks)
        load.clients = [
            self._client(ask, leave_after=leave, load=load, headers=headers, attempts=attempts)
            for ask, leave in zip(asks, leaving, strict=True)
        ]
        with self._probing() if probe else contextlib.nullcontext():
            with self._engine_held(asks) if held else contextlib.nullcontext():
                threads = ask_all(load.clients)
                self.sent_besides(len(threads))
            yield load
            for thread in threads:
                thread.join(60)
                assert not thread.is_alive(), "a request has no end"
            self.sent_besides(len(load.replies) - len(threads))

    def judge(
        self,
        load: Load,
        *,
        whole: bool = True,
        refusals: bool = False,
        slowest_probe: float = _SLOWEST_PROBE,
    ) -> None:
        """Ask the five questions. The load's requests are over.

        Args:
            load: What was under way.
            whole: Whether every request must have got its whole answer.
            refusals: Whether some may have been turned away, with advice when to come back.
            slowest_probe: Seconds in which each question whether it lives must be answered.
        """
        self._judge_ends(load.replies, whole=whole, refusals=refusals)
        self.server.wait_ready()
        self.server.wait_idle()
        self._judge_counts()
        self._bounds.judge()
        self._judge_secrets()
        self._judge_health("ok", slowest_probe)
        self._judge_readiness()

    def judge_without_engine(self, load: Load) -> None:
        """Ask the five questions of a server that gets no engine any more, and stays."""
        self._judge_ends(load.replies, whole=False, refusals=True)
        self.server.wait_idle()
        self._judge_counts()
        self._bounds.judge(engine=False)
        self._judge_secrets()
        self._judge_health("down", _SLOWEST_PROBE)
        self._judge_refusal()

    def judge_end(self, load: Load, *, whole: bool) -> None:
        """Ask what can be asked of a server that has ended: the first, second and fourth.

        What it counted, and its spans, are compared when its collector is looked through.
        """
        self._judge_ends(load.replies, whole=whole, refusals=True)
        self._judge_secrets()

    # -- the five questions ---------------------------------------------------

    def _judge_ends(self, replies: Sequence[Reply], *, whole: bool, refusals: bool) -> None:
        for reply in replies:
            if reply.left:
                continue
            self._tally.lost += reply.ends == 0
            self._tally.doubled += max(0, reply.ends - 1)
            assert reply.ends == 1, reply
            if reply.whole:
                self._compare(reply)
            elif reply.status in {429, 503} and refusals:
                assert reply.retry_after, reply
            else:
                assert not whole, reply
                assert reply.error, reply
                self._compare_beginning(reply)

    def _compare(self, reply: Reply) -> None:
        truth = self._undisturbed.get(id(reply.ask))
        if truth is not None:
            assert (truth.texts, truth.finishes) == (reply.texts, reply.finishes)

    def _compare_beginning(self, reply: Reply) -> None:
        """What came before an error is the beginning of the true answer: nothing is invented."""
        truth = self._undisturbed.get(id(reply.ask))
        for choice, text in reply.texts.items():
            assert truth is None or truth.texts[choice].startswith(text)

    def _judge_counts(self) -> None:
        sent, counted = self.server.sent, self.server.total("pharos_requests_finished_total")
        self._tally.lost += max(0, int(sent - counted))
        self._tally.doubled += max(0, int(counted - sent))
        assert sent == counted

    def _judge_secrets(self) -> None:
        """Every answer was searched as it came; spans are, with the log, when the server has ended."""
        if self.server.is_running:
            for path in ("/metrics", "/v1/metrics", "/health", "/openapi.json"):
                self.server.get(path)
        for secret in self.server.secrets:
            assert secret not in "".join(self.server.log), "a secret is in the log"
        assert [] == self.server.leaks

    def _judge_health(self, status: str, slowest_probe: float) -> None:
        assert {200} >= {status for _, status in self._probes}
        assert max((seconds for seconds, _ in self._probes), default=0.0) < slowest_probe
        assert status == self.server.health()["status"]
        self._probes.clear()

    def _judge_readiness(self) -> None:
        """Ready was said, so a small request is served; one that comes too soon may be told when."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        (ask,) = draw_asks(1, self.seed, mark=self._mark, tokens=8)
        while True:
            (reply,) = self._run([self._client(ask)])
            if reply.whole:
                return
            assert reply.retry_after, reply
            assert time.monotonic() < deadline, reply
            time.sleep(float(reply.retry_after) / 5)

    def _judge_refusal(self) -> None:
        """Not ready was said, so a request is refused, with advice."""
        assert 503 == self.server.get("/readyz")[0]
        (ask,) = draw_asks(1, self.seed, mark=self._mark, tokens=8)
        (reply,) = self._run([self._client(ask)])
        assert (503, 1) == (reply.status, reply.ends)
        assert reply.retry_after, reply

    # -------------------------------------------------------------------------

    def _client(
        self,
        ask: Ask,
        *,
        leave_after: int | None = None,
        load: Load | None = None,
        headers: Mapping[str, str] | None = None,
        attempts: int = 1,
    ) -> Client:
        return Client(
            self.server.port,
            ask,
            headers={**self.server.headers, **(headers or {})},
            leave_after=leave_after,
            attempts=attempts,
            on_text=load.count if load else lambda _: None,
            on_bytes=self.server.hear,
        )

    def _run(self, clients: Sequence[Client]) -> list[Reply]:
        for thread in ask_all(clients):
            thread.join(60)
        self.sent_besides(len(clients))
        return [client.reply for client in clients]

    @contextlib.contextmanager
    def _engine_held(self, asks: Sequence[Ask]) -> Iterator[None]:
        """Stop the engine, and let it go on once the server has taken all requests."""
        engine = self.server.engine
        sequences = sum(ask.sequences for ask in asks)
        engine.suspend()
        try:
            yield
            self.server.wait_for(lambda: self.server.health()["waiting"] == sequences, "taken")
        finally:
            engine.resume()

    @contextlib.contextmanager
    def _probing(self) -> Iterator[None]:
        """Ask for liveness again and again while the block runs."""
        over = threading.Event()

        def probe() -> None:
            while True:
                begin = time.monotonic()
                try:
                    status, _ = self.server.get("/livez", timeout=_SLOWEST_PROBE)
                except OSError:
                    status = 0
                self._probes.append((time.monotonic() - begin, status))
                if over.wait(0.05):
                    return

        thread = threading.Thread(target=probe, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(_SLOWEST_PROBE * 2)
