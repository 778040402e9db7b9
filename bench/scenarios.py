"""What is measured. Each scenario runs us and the peer in turn, in the same run, several times."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from mlx_pharos.config import ConfigValidator, Settings
from mlx_pharos.engine.models.pull import ensure_local
from mlx_pharos.engine.models.store import Store
from mlx_pharos.settings import default_cache_dir
from mlx_pharos.validation.packages import requirements

from .load import Load, Outcome, run_load
from .servers import (
    ServerProcess,
    mlx_lm_command,
    mlx_lm_openblas_command,
    pharos_command,
    running,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OURS", "SCENARIOS", "Row", "Setting", "outcomes_as_json", "rounds"]

OURS = "bench"
_PEER = "default_model"
_WIDE = ("--max-batch", "64", "--max-queue", "256")


@dataclass(frozen=True)
class Setting:
    """What all scenarios need to know."""

    tiny: Path
    """The directory of the tiny model."""
    repeats: int


@dataclass
class Row:
    """One line of the table."""

    scenario: str
    figure: str
    ours: list[float]
    other_name: str
    other: list[float]
    bound: str
    """What is demanded of the ratio of ours to the other, for example ``>= 1.8``; may be empty."""
    ratios: list[float] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Pair the runs: each of ours against the other's of the same round."""
        if not self.ratios:
            self.ratios = [
                ours / other for ours, other in zip(self.ours, self.other, strict=False) if other
            ]

    @property
    def ratio(self) -> float | None:
        """The median of the paired ratios."""
        return median(self.ratios) if self.ratios else None

    @property
    def holds(self) -> bool | None:
        """Whether the bound holds; None where there is none."""
        if not self.bound:
            return None
        operator, value = self.bound.split()[-2:]
        measured = self.ratio if self.ratio is not None else median(self.ours)
        return measured >= float(value) if operator == ">=" else measured <= float(value)


def outcomes_as_json(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """Return loads for the raw figures."""
    return [
        {
            "seconds": outcome.seconds,
            "tokens": outcome.tokens,
            "completed": outcome.completed,
            "resets": outcome.resets,
            "failures": outcome.failures,
            "first_token": outcome.first_token,
            "per_token": outcome.per_token,
        }
        for outcome in outcomes
    ]


def rounds(
    servers: list[ServerProcess], repeats: int, streams: int, max_tokens: int
) -> list[list[Outcome]]:
    """Load the servers in turn; the first round warms up and is not counted."""
    outcomes: list[list[Outcome]] = [[] for _ in servers]
    for repeat in range(repeats + 1):
        for index, server in enumerate(servers):
            load = Load(server.port, server.model, streams, max_tokens, f"{streams}.{repeat}")
            outcome = run_load(load)
            if repeat:
                outcomes[index].append(outcome)
    return outcomes


def _bare(model: Path, streams: int, tokens: int) -> float:
    """Return the tokens per second of one run of the bare generator, in its own process."""
    arguments = [str(model), str(streams), str(tokens), "1"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.bare", *arguments],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    return float(json.loads(done.stdout.splitlines()[-1])[0])


def tiny_32(setting: Setting) -> list[Row]:
    """32 streams of the tiny model: what the server itself costs."""
    streams, tokens = 32, 200
    bare: list[float] = []
    ours: list[Outcome] = []
    peer: list[Outcome] = []
    with ExitStack() as stack:
        own = stack.enter_context(running(pharos_command, setting.tiny, OURS))
        other = stack.enter_context(running(mlx_lm_openblas_command, setting.tiny, _PEER))
        for _ in range(setting.repeats):
            (first, second) = rounds([own, other], 1, streams, tokens)
            ours += first
            peer += second
            bare.append(_bare(setting.tiny, streams, tokens))
    rates = [outcome.rate for outcome in ours]
    raw = {"ours": outcomes_as_json(ours), "peer": outcomes_as_json(peer), "bare": bare}
    return [
        Row(
            "tiny, 32 streams",
            "output tokens/s",
            rates,
            "mlx_lm.server",
            [outcome.rate for outcome in peer],
            ">= 1.8",
            raw=raw,
        ),
        Row("tiny, 32 streams", "output tokens/s", rates, "bare BatchGenerator", bare, ">= 0.7"),
    ]


def tiny_256(setting: Setting) -> list[Row]:
    """256 streams at once, with settings that admit them."""
    streams, tokens = 256, 50
    with running(pharos_command, setting.tiny, OURS, *_WIDE) as own:
        (ours,) = rounds([own], setting.repeats, streams, tokens)
    with running(mlx_lm_openblas_command, setting.tiny, _PEER) as other:
        # One round: it cuts connections, and those that try again can take minutes.
        peer = [
            run_load(Load(other.port, other.model, streams, tokens, "256.peer", limit_seconds=60.0))
        ]
    raw = {"ours": outcomes_as_json(ours), "peer": outcomes_as_json(peer)}
    return [
        Row(
            "tiny, 256 streams",
            "completed of 256",
            [float(outcome.completed) for outcome in ours],
            "mlx_lm.server",
            [float(outcome.completed) for outcome in peer],
            "",
            raw=raw,
        ),
        Row(
            "tiny, 256 streams",
            "connections cut",
            [float(outcome.resets) for outcome in ours],
            "mlx_lm.server",
            [float(outcome.resets) for outcome in peer],
            "",
        ),
        Row(
            "tiny, 256 streams",
            "output tokens/s",
            [outcome.rate for outcome in ours],
            "mlx_lm.server",
            [outcome.rate for outcome in peer],
            "",
        ),
    ]


def tiny_1(setting: Setting) -> list[Row]:
    """One stream of the tiny model: latency."""
    with ExitStack() as stack:
        own = stack.enter_context(running(pharos_command, setting.tiny, OURS))
        other = stack.enter_context(running(mlx_lm_openblas_command, setting.tiny, _PEER))
        ours, peer = rounds([own, other], 4 * setting.repeats, 1, 200)
    raw = {"ours": outcomes_as_json(ours), "peer": outcomes_as_json(peer)}

    def row(figure: str, pick: Callable[[Outcome], list[float]]) -> Row:
        return Row(
            "tiny, 1 stream",
            figure,
            [1e3 * pick(outcome)[0] for outcome in ours],
            "mlx_lm.server",
            [1e3 * pick(outcome)[0] for outcome in peer],
            "<= 1.2",
            raw=raw,
        )

    return [
        row("time to first token, ms", lambda outcome: outcome.first_token),
        row("time per token, ms", lambda outcome: outcome.per_token),
    ]


def starter_16(setting: Setting) -> list[Row]:
    """16 streams of the starter model on this machine, against the 4-bit files as they are."""
    store = Store(default_cache_dir().expanduser())
    directory = ensure_local("starter", store, report=lambda line: print(line, file=sys.stderr))
    repeats = min(setting.repeats, 3)
    with running(pharos_command, "starter", OURS) as own:
        (ours,) = rounds([own], repeats, 16, 32)
    with running(mlx_lm_command, directory, _PEER) as other:
        # It is slow, so it gets no round to warm up; its first answer has done that.
        peer = [
            run_load(Load(other.port, other.model, 16, 32, f"starter.{repeat}"))
            for repeat in range(repeats)
        ]
    return [
        Row(
            "starter, 16 streams",
            "output tokens/s",
            [outcome.rate for outcome in ours],
            "mlx_lm.server, 4-bit",
            [outcome.rate for outcome in peer],
            ">= 8",
            raw={"ours": outcomes_as_json(ours), "peer": outcomes_as_json(peer)},
        )
    ]


def start(setting: Setting) -> list[Row]:
    """From the command to the first token, and what the server process holds when idle."""
    seconds: tuple[list[float], list[float]] = ([], [])
    resident: list[float] = []
    for _ in range(setting.repeats):
        with running(pharos_command, setting.tiny, OURS) as own:
            seconds[0].append(own.first_answer)
            resident.append(own.resident_bytes / 2**20)
        with running(mlx_lm_command, setting.tiny, _PEER) as other:
            seconds[1].append(other.first_answer)
    return [
        Row(
            "start, tiny", "s to the first token", seconds[0], "mlx_lm.server", seconds[1], "<= 1.3"
        ),
        Row("idle, tiny", "server process, MiB", resident, "", [], "<= 120"),
    ]


def config(setting: Setting) -> list[Row]:
    """All checks of a configuration before a start, those of a small model's files included."""
    milliseconds = []
    for _ in range(setting.repeats):
        requirements.cache_clear()
        begin = time.perf_counter()
        problems = ConfigValidator(Settings(model=str(setting.tiny), port=0)).validate_all_config()
        milliseconds.append((time.perf_counter() - begin) * 1000)
        assert not problems, problems
    return [Row("configuration, tiny", "all checks, ms", milliseconds, "", [], "<= 100")]


SCENARIOS: dict[str, Callable[[Setting], list[Row]]] = {
    "config": config,
    "start": start,
    "tiny-1": tiny_1,
    "tiny-32": tiny_32,
    "tiny-256": tiny_256,
    "starter-16": starter_16,
}
