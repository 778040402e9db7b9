"""``python serve_process.py MODEL SETTINGS``: a server process as ``pharos serve`` makes it.

SETTINGS is a JSON object of :class:`ServerOptions`. On SIGUSR1 it writes the
names of all imported modules to standard error, one line, for the tests that
look inside a running server.
"""

from __future__ import annotations

import json
import signal
import sys

from mlx_pharos.engine.client import start_engine
from mlx_pharos.engine.protocol import EngineOptions
from mlx_pharos.server import ServerOptions, serve


def main(model: str, settings: str) -> int:
    """Serve until a signal."""
    options = ServerOptions(("tiny",), **json.loads(settings))
    engine = start_engine(
        EngineOptions(
            model_directory=model,
            max_batch=options.max_batch,
            prefill_step=0,
            prompt_cache_bytes=-1,
            context_length=0,
            dequantize="auto",
            blas="auto",
            trust_remote_code=False,
            wired_limit=False,
        ),
        max_batch=options.max_batch,
        max_queue=options.max_queue,
    )

    def tell(*_: object) -> None:
        sys.stderr.write("modules: " + " ".join(sys.modules) + "\n")
        sys.stderr.flush()

    signal.signal(signal.SIGUSR1, tell)
    return serve(options, engine)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
