"""The engine process: ``python -m mlx_pharos.engine.worker FD``.

``FD`` is an inherited socket; its first frame holds the options. The main
thread becomes the MLX thread. The process ends when the socket closes.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from multiprocessing.connection import Connection

from ...resilience.errors import ModelError
from ..models.blas import BlasPreload, preload
from ..protocol import EngineOptions, LoadFailed, decode_options
from .inbox import Outbox

_log = logging.getLogger("mlx_pharos.engine")


def main() -> int:
    """Serve until the server closes the pipe; return the exit code."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s engine: %(message)s"
    )
    # The server decides when to end. Signals of the terminal or of a service
    # manager reach the whole group; the engine must outlive a drain.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    outbox = Outbox(connection)
    _import_libraries()
    try:
        options = decode_options(connection.recv_bytes())
        # Before anything imports mlx, so that mlx's matrix products find it.
        blas = preload(options.blas)
        return _serve(options, connection, outbox, blas)
    except EOFError:
        return 0
    except ModelError as error:
        outbox.send(LoadFailed(error.message))
        return 1
    except Exception as error:  # noqa: BLE001 - the process's border
        _log.exception("the engine could not start")
        outbox.send(LoadFailed(f"the engine could not start ({type(error).__name__})"))
        return 1


def _import_libraries() -> None:
    """Import what takes longest before the options are known. None of it imports mlx."""
    from transformers import AutoTokenizer  # noqa: F401, PLC0415


def _serve(
    options: EngineOptions, connection: Connection, outbox: Outbox, blas: BlasPreload
) -> int:
    from .service import serve  # noqa: PLC0415 - imports mlx, after the BLAS

    serve(options, connection, outbox, blas=blas)
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Interpreter shutdown would join the tokenizer's threads and tear down mlx
    # under them; everything that must end in order has ended.
    os._exit(code)
