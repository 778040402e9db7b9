"""Past the last restart: the server ends with an exit code that says so, or stays if it was told."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

from support.patient import patient

if TYPE_CHECKING:
    from pathlib import Path

    from support.patient import Patient

_ONE_RESTART = ("--restart-limit", "1", "--max-batch", "2", "--max-queue", "4")


def _kill_the_last_engine(server: Patient) -> None:
    """Kill an engine, which is started again, and the next one, which is not."""
    first = server.engine
    first.kill()
    server.wait_for(lambda: server.health()["engine"]["restarts"] == 1, "a restart", 15)
    server.wait_ready()
    assert first.pid != server.engine.pid
    server.engine.kill()


def test_the_server_ends_without_an_engine(tiny_model: Path) -> None:
    """By itself, with code 1, and the log says why: a service manager can help then."""
    with patient(tiny_model, *_ONE_RESTART) as server:
        _kill_the_last_engine(server)

        assert 1 == server.wait(15)
    assert "Pharos cannot serve" in "".join(server.log)


def test_the_server_stays_without_an_engine(tiny_model: Path) -> None:
    """With ``--without-engine stay`` it is alive and not ready until it is told to stop."""
    with patient(tiny_model, *_ONE_RESTART, "--without-engine", "stay") as server:
        _kill_the_last_engine(server)
        server.wait_for(lambda: "cannot serve" in "".join(server.log), "given up", 15)

        for _ in range(3):
            assert 200 == server.get("/livez")[0]
            status, body = server.get("/readyz")
            assert (503, "down") == (status, json.loads(body)["status"])
        assert "down" == server.health()["status"]
        server.send_signal(signal.SIGTERM)
        assert 0 == server.wait(15)
