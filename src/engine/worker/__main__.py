"""The engine process: ``python -m mlx_pharos.engine.worker FD``.

``FD`` is an inherited socket; its first frame holds the options. The main
thread becomes the MLX thread. The process ends when the socket closes.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import select
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from ...resilience.errors import ModelError
from ...resilience.failure_text import SanitizedFormatter, log_uncaught
from ..models.blas import BlasPreload, preload
from ..protocol import OUT_OF_MEMORY_EXIT, EngineOptions, LoadFailed, decode_options

if TYPE_CHECKING:
    from .inbox import Outbox
    from .service import Engine

_EXIT_SECONDS = 2.0
_PR_SET_PDEATHSIG = 1
_NICENESS = 3
"""Above the server's: who asks it something waits less for the model's steps where processors are few.
Decision 0024 has what was measured."""
_log = logging.getLogger("mlx_pharos.engine")


def main() -> int:
    """Serve until the server closes the pipe; return the exit code."""
    os.nice(_NICENESS)  # before there are threads, which inherit it
    gc.disable()  # of what is imported and loaded nothing is garbage; see Engine.run
    _configure_log()
    # The server decides when to end; the engine must outlive a drain. And it may write to a terminal
    # where it is in the background.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)
    _die_with_server()
    connection = Connection(int(sys.argv[1]))
    threading.Thread(target=_watch, args=(connection,), name="lifeline", daemon=True).start()
    _import_libraries()
    from .inbox import Outbox  # noqa: PLC0415 - after the thread above: it imports transformers

    outbox = Outbox(connection)
    try:
        options = decode_options(connection.recv_bytes())
    except EOFError:
        return 0
    try:
        # Before anything imports mlx, so that mlx's matrix products find it.
        blas = preload(options.blas)
        engine = _load(options, connection, outbox, blas)
    except ModelError as error:
        _log.error("%s", error.message, exc_info=error.__cause__)
        outbox.send(LoadFailed(error.message))
        return 1
    except Exception as error:  # noqa: BLE001 - the process's border
        _log.exception("the engine could not start")
        outbox.send(LoadFailed(f"the engine could not start ({type(error).__name__})"))
        return 1
    try:
        engine.run()
    except MemoryError:
        _log.exception("the engine ends, so that another can begin with its memory free")
        return OUT_OF_MEMORY_EXIT
    return 0


def _die_with_server() -> None:
    """Ask Linux for SIGKILL when the server is gone.

    The closed pipe ends the process too, but a thread has to see that, and code
    that never lets go of Python's lock would keep it from running.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _configure_log() -> None:
    """Write to standard error, which is the server's: no prompt, key or path."""
    handler = logging.StreamHandler()
    handler.setFormatter(SanitizedFormatter("%(asctime)s %(levelname)s engine: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    log_uncaught(_log)


def _watch(connection: Connection) -> None:
    """End the process when the server is gone, whatever the other threads do then.

    A load of minutes or a long prefill chunk cannot be interrupted. The main
    thread gets a moment to end by itself.
    """
    hung_up = select.poll()
    hung_up.register(connection.fileno(), 0)  # no event but the hang-up, which is always told
    hung_up.poll()
    time.sleep(_EXIT_SECONDS)
    os._exit(0)


def _import_libraries() -> None:
    """Import what takes longest before the options are known. None of it imports mlx."""
    from ..models.one_scan import import_transformers  # noqa: PLC0415 - after the thread above

    import_transformers()


def _load(
    options: EngineOptions, connection: Connection, outbox: Outbox, blas: BlasPreload
) -> Engine:
    from .service import load_engine  # noqa: PLC0415 - imports mlx, after the BLAS

    return load_engine(options, connection, outbox, blas=blas)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Interpreter shutdown would join the tokenizer's threads and tear down mlx
    # under them; everything that must end in order has ended.
    os._exit(code)
