"""The memory ladder, with real allocations of this process as the memory."""

from __future__ import annotations

from mlx_pharos.resilience.ladder import MemoryLadder, Reclaimed, Rung


class _Memory:
    """Two buffers that can be given up, and what they take together."""

    def __init__(self) -> None:
        self.now = 0.0
        self.buffers = {"a": bytearray(1000), "b": bytearray(300)}
        self.taken: list[str] = []
        self.told: list[Reclaimed] = []
        self.ladder = MemoryLadder(
            [
                Rung("buffer_cache", lambda: self.drop("a")),
                Rung("prompt_cache", lambda: self.drop("b")),
                Rung("refuse", lambda: self.drop("nothing")),
            ],
            measure=lambda: sum(map(len, self.buffers.values())),
            clock=lambda: self.now,
            listener=self.told.append,
            quiet_seconds=5.0,
        )

    def drop(self, name: str) -> None:
        self.taken.append(name)
        self.buffers.pop(name, None)


def test_each_step_tells_what_was_measured() -> None:
    """Before and after are real, and a step that frees nothing says so."""
    memory = _Memory()
    steps = [memory.ladder.reclaim() for _ in range(3)]
    assert [
        Reclaimed("buffer_cache", 1300, 300),
        Reclaimed("prompt_cache", 300, 0),
        Reclaimed("refuse", 0, 0),
    ] == steps
    assert [1000, 300, 0] == [step.freed_bytes for step in steps]
    assert steps == memory.told


def test_refusing_ends_by_itself() -> None:
    """The guard cannot wedge itself: after the quiet time work is taken, and trouble starts anew."""
    memory = _Memory()
    while not memory.ladder.exhausted:
        memory.ladder.reclaim()
    assert (True, True) == (memory.ladder.refusing, memory.ladder.exhausted)
    memory.now = 4.9
    assert memory.ladder.refusing
    assert 0 < memory.ladder.retry_seconds < 0.2
    memory.now = 5.0
    assert (False, False) == (memory.ladder.refusing, memory.ladder.exhausted)
    memory.buffers["a"] = bytearray(10)
    assert Reclaimed("buffer_cache", 10, 0) == memory.ladder.reclaim()


def test_trouble_within_the_quiet_time_climbs_on() -> None:
    """The next failure does not try again what has just been tried; past the last step it does."""
    memory = _Memory()
    for at in (0.0, 4.0, 8.0):
        memory.now = at
        memory.ladder.reclaim()
    assert ["a", "b", "nothing"] == memory.taken
    memory.now = 12.0
    assert "buffer_cache" == memory.ladder.reclaim().action
    assert (True, True) == (memory.ladder.refusing, memory.ladder.exhausted)
