"""A real server: waitress on a loopback port, a real engine process, the tiny model."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import pytest

from mlx_pharos.engine.client import start_engine
from mlx_pharos.engine.protocol import EngineOptions
from mlx_pharos.server.app import create_app, start_telemetry
from mlx_pharos.server.listener import Listener
from mlx_pharos.server.operations import operations_listener
from mlx_pharos.server.options import ServerOptions
from mlx_pharos.server.places import PLACES
from mlx_pharos.server.shutdown import Shutdown
from support.client import RunningServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    from mlx_pharos.engine.engine_state import Endurance
    from mlx_pharos.resilience.restarts import RestartPolicy
    from mlx_pharos.telemetry.telemetry import Telemetry

__all__ = ["server", "serving"]


@contextlib.contextmanager
def _serving(
    model: Path,
    *,
    ready: bool = True,
    telemetry: Telemetry | None = None,
    restarts: RestartPolicy | None = None,
    endurance: Endurance | None = None,
    trust_remote_code: bool = False,
    memory_limit_bytes: int = -1,
    **settings: Any,
) -> Iterator[RunningServer]:
    defaults: dict[str, Any] = {
        "served_model_names": ("tiny", "org/other"),
        "port": 0,
        "max_batch": 8,
        "max_queue": 64,
        "drain_seconds": 5.0,
    }
    options = ServerOptions(**(defaults | settings))
    engine = start_engine(
        EngineOptions(
            model_directory=str(model),
            max_batch=options.max_batch,
            prefill_step=0,
            prompt_cache_bytes=-1,
            context_length=0,
            dequantize="auto",
            blas="auto",
            trust_remote_code=trust_remote_code,
            wired_limit=False,
            memory_limit_bytes=memory_limit_bytes,
        ),
        max_batch=options.max_batch,
        max_queue=options.max_queue,
        restarts=restarts,
        endurance=endurance,
    )
    shutdown = Shutdown()
    telemetry = telemetry or start_telemetry(options)
    try:
        app = create_app(options, engine, telemetry, shutdown)
        listener = Listener(
            app, options, shutdown, on_drain=engine.drain, places=app.extensions[PLACES]
        )
        with operations_listener(app, options, shutdown) as operations:
            loop = threading.Thread(target=listener.run, name="listener")
            loop.start()
            try:
                if ready:
                    assert engine.wait_ready(15), engine.down_reason
                yield RunningServer(options, engine, listener, shutdown, operations)
            finally:
                listener.stop()
                listener.stop()
                loop.join(10)
                assert not loop.is_alive()
    finally:
        engine.close()
        telemetry.shutdown()


@pytest.fixture(scope="session")
def serving() -> Callable[..., contextlib.AbstractContextManager[RunningServer]]:
    """Serve a model as the context's value, with other settings where given."""
    return _serving


@pytest.fixture(scope="session")
def server(tiny_model: Path) -> Iterator[RunningServer]:
    """The server that most tests share. They leave no request behind."""
    with _serving(tiny_model) as running:
        yield running
