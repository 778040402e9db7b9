"""Faults of greed: one key sends more than its rate allows, or more than its share of the places."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import pytest

from mlx_pharos.keys.key_file import KeyFile
from support.examination import Load
from support.planted import planted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.asks import Reply
    from support.examination import Examination
    from support.patient import Patient

pytestmark = pytest.mark.battery

_WIDE = ("--max-batch", "16", "--max-queue", "240")


@contextlib.contextmanager
def _two_keys(model: Path, folder: Path, *flags: str) -> Iterator[tuple[Patient, dict[str, str]]]:
    """Serve with a second key, which is greedy, and yield the header that it is sent in."""
    path = folder / "keys"
    greedy = KeyFile(path).add("greedy")
    with planted(model, "--api-keys-file", str(path), *flags) as server:
        server.secrets.append(greedy)
        yield server, {"Authorization": f"Bearer {greedy}"}


def _assert_turned_away(server: Patient, replies: list[Reply]) -> None:
    """Some were whole, and all others were told when to come back."""
    refused = [reply for reply in replies if not reply.whole]
    assert 0 < len(refused) < len(replies)
    assert {(429, "rate_limit_exceeded")} == {(each.status, each.error) for each in refused}
    assert all(1 <= int(reply.retry_after) <= 60 for reply in refused)
    assert len(refused) == server.total("pharos_admission_refusals_total", reason="rate")


def test_more_requests_than_the_rate(
    tiny_model: Path, tmp_path: Path, examine: Callable[[Patient], Examination]
) -> None:
    """A minute's worth at once is served, the rest is refused; the other key's are whole. Who comes
    back when it was told to is served.
    """
    rate = 40
    with _two_keys(tiny_model, tmp_path, *_WIDE, "--requests-per-minute", str(rate)) as (
        server,
        greedy,
    ):
        examination = examine(server)
        asks = examination.draw(8)
        begin = time.monotonic()
        with (
            examination.load(asks * 10, headers=greedy, probe=False) as flood,
            examination.load(asks) as load,
        ):
            pass
        refilled = (time.monotonic() - begin) * rate / 60
        served = sum(reply.whole for reply in flood.replies)
        assert rate <= served <= rate + refilled + 1
        time.sleep(max(float(reply.retry_after or 0) for reply in flood.replies))
        with examination.load(asks[:1], headers=greedy, probe=False) as later:
            pass
        everything = Load([*load.clients, *flood.clients, *later.clients])
        examination.judge(everything, whole=False, refusals=True)
        _assert_turned_away(server, flood.replies)
        assert all(reply.whole for reply in [*load.replies, *later.replies])


def test_more_tokens_than_the_rate(
    tiny_model: Path, tmp_path: Path, examine: Callable[[Patient], Examination]
) -> None:
    """Of 120 requests of one key fewer are taken than it has tokens for; the other key's are whole."""
    with _two_keys(tiny_model, tmp_path, *_WIDE, "--tokens-per-minute", "10000") as (
        server,
        greedy,
    ):
        examination = examine(server)
        asks = examination.draw(4)
        with (
            examination.load(asks * 30, headers=greedy, probe=False) as flood,
            examination.load(asks) as load,
        ):
            pass
        examination.judge(Load([*load.clients, *flood.clients]), whole=False, refusals=True)
        _assert_turned_away(server, flood.replies)
        assert all(reply.whole for reply in load.replies)


def test_a_queue_full_of_one_key(
    tiny_model: Path, tmp_path: Path, examine: Callable[[Patient], Examination]
) -> None:
    """24 requests of one key wait when four of another come: those have their turns among the first.

    The order of the ends is compared, so a slow machine changes nothing.
    """
    narrow = ("--max-batch", "2", "--max-queue", "126")
    with _two_keys(tiny_model, tmp_path, *narrow) as (server, greedy):
        examination = examine(server)
        asks = examination.draw(4)
        sequences = sum(ask.sequences for ask in asks)
        server.engine.suspend()
        with contextlib.ExitStack() as stack:
            flood = stack.enter_context(examination.load(asks * 6, headers=greedy))
            server.wait_for(lambda: server.health()["waiting"] == 6 * sequences, "the flood")
            load = stack.enter_context(examination.load(asks, probe=False))
            server.wait_for(lambda: server.health()["waiting"] == 7 * sequences, "the few")
            server.engine.resume()
        examination.judge(Load([*load.clients, *flood.clients]))
        last = max(reply.ended_at for reply in load.replies)
        before = sum(reply.ended_at < last for reply in flood.replies)
        assert before <= len(flood.replies) // 2
