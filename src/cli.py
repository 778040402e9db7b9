"""The command ``pharos``: serve, pull, doctor, keys, service.

What a command needs is imported when it runs, in the order in which it is
needed: ``pharos serve`` has spawned the engine process before it imports Flask,
so that the two load at the same time.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import TYPE_CHECKING

from . import __version__

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from .engine.protocol import EngineOptions
    from .resilience.api_keys import ApiKey
    from .resilience.retry import RetryReport
    from .server.options import ServerOptions
    from .settings import Settings

__all__ = ["main"]

EXIT_FAILED = 1
"""The exit code for what may work when it is tried again: a model that could not be fetched."""
EXIT_USAGE = 2
"""The exit code for a command line or settings that have to be changed."""
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
"""The exit codes that shells use for SIGINT and SIGTERM."""

_SUMMARY = """\
Pharos: a model server for MLX that can be left running

  pharos serve            serve the starter model on http://127.0.0.1:8080
  pharos serve --model M  serve a directory, a .gguf file or a repository of the Hub
  pharos pull M           fetch a model beforehand
  pharos doctor           say whether this machine can serve, and what to mend
  pharos keys add NAME    make a key for a client; also list, and remove NAME
  pharos service print    print the file with which systemd or launchd runs it
  pharos --version        print the version

`pharos COMMAND --help` says more.
"""

_LAST_LINES_SECONDS = 2.0
"""How long the end waits for somebody to read the log."""
_SOURCES = (
    "In brackets: the default. Every setting is also a variable, PHAROS_PORT for --port, and a "
    "key of pharos.toml, port; flags win over variables, variables over the file. "
    "PHAROS_API_KEY and PHAROS_METRICS_API_KEY have no flag: other users could see them."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the process's exit code."""
    given = sys.argv[1:] if arguments is None else [*arguments]
    command, *rest = given or [""]
    commands = {
        "serve": _serve,
        "pull": _pull,
        "doctor": _doctor,
        "keys": _keys,
        "service": _service,
    }
    if command in {"--version", "-V"}:
        print(f"pharos {__version__}")
        return 0
    if command in {"--help", "-h", "help", ""}:
        print(_SUMMARY, end="")
        return 0 if command else EXIT_USAGE
    if command not in commands:
        print(f"pharos: there is no command {command!r}\n\n{_SUMMARY}", end="", file=sys.stderr)
        return EXIT_USAGE
    try:
        return commands[command](rest)
    except KeyboardInterrupt:
        # The terminal has shown ^C, and the cursor stands behind it.
        print("\nInterrupted. Run it again to go on.", file=sys.stderr)
        return EXIT_INTERRUPTED


def _serve(arguments: Sequence[str]) -> int:
    """Serve a model until a signal."""
    if _wants_help(arguments):
        print(_serve_parser().format_help(), end="")
        return 0

    from .engine.supervisor import EngineProcess

    # It takes most of a second to import its libraries, whatever the settings say.
    process = EngineProcess()

    from .sources import ConfigurationError

    retries: list[RetryReport] = []
    try:
        prepared = _prepared(arguments, retries)
    except BaseException:
        process.discard()
        raise
    if isinstance(prepared, int):
        process.discard()
        return prepared
    settings, directory = prepared

    from .engine.client import start_engine
    from .engine.engine_state import Endurance
    from .resilience.restarts import RestartPolicy
    from .telemetry.variables import drop_empty_variables

    drop_empty_variables()  # what is imported next reads them
    engine = start_engine(
        _engine_options(settings, directory),
        max_batch=settings.max_batch,
        max_queue=settings.max_queue,
        process=process,
        restarts=RestartPolicy(
            limit=settings.restart_limit, window_seconds=settings.restart_window
        ),
        endurance=Endurance(
            hang_seconds=settings.hang_timeout,
            load_seconds=settings.load_timeout,
            crash_budget=settings.crash_budget,
        ),
    )
    try:  # from here on the model loads while Flask is imported
        import logging

        from .resilience.failure_text import log_uncaught
        from .server import SdNotify, serve
        from .telemetry.log import configure_log
        from .telemetry.log_writer import LogWriter

        log = LogWriter(sys.stderr.fileno())
        atexit.register(log.finish, _LAST_LINES_SECONDS)
        configure_log(level=settings.log_level, style=settings.log_format, stream=log)
        log_uncaught(logging.getLogger("mlx_pharos"))
        # auto is as in configure_log: people read terminals, programs read everything else.
        plain = settings.log_format == "console" or (
            settings.log_format == "auto" and sys.stderr.isatty()
        )
        return serve(
            _server_options(settings),
            engine,
            say_in_log=not plain,
            notify=SdNotify.of(os.environ),
            retries=retries,
        )
    except ConfigurationError as error:  # what held a moment ago holds no more
        _say(error.report())
        return EXIT_USAGE
    finally:
        engine.close()


def _prepared(arguments: Sequence[str], retries: list[RetryReport]) -> tuple[Settings, str] | int:
    """Return settings that hold and the model's directory, or the exit code: why was said."""
    from .config import ConfigurationError, ConfigValidator, configure

    try:
        settings = configure(arguments)
    except ConfigurationError as error:
        _say(error.report())
        return EXIT_USAGE
    for each in ConfigValidator(settings).warnings():
        _say(f"pharos: warning: {each.subject}: {each.text}.")
    directory = _fetched(settings, retries)
    return EXIT_FAILED if directory is None else (settings, directory)


def _engine_options(settings: Settings, directory: str) -> EngineOptions:
    from .engine.protocol import EngineOptions

    return EngineOptions(
        model_directory=directory,
        max_batch=settings.max_batch,
        prefill_step=settings.prefill_step,
        prompt_cache_bytes=settings.prompt_cache,
        context_length=settings.context_length,
        dequantize=settings.dequantize,
        blas=settings.blas,
        trust_remote_code=settings.trust_remote_code,
        wired_limit=settings.wired_limit,
        ignore_model_code=settings.ignore_model_code,
        memory_limit_bytes=settings.memory_limit,
    )


def _api_keys(settings: Settings) -> tuple[ApiKey, ...]:
    """Return the keys that clients may send; raises where a file of keys holds none by now."""
    from .config import ConfigValidator
    from .resilience.api_keys import ApiKey

    kept = ConfigValidator(settings).validate_keys()
    if settings.api_key is None:
        return kept
    return (ApiKey.of("default", settings.api_key.get_secret_value()), *kept)


def _server_options(settings: Settings) -> ServerOptions:
    from .server import RequestDefaults, ServerOptions

    return ServerOptions(
        served_model_names=settings.served_names,
        host=settings.host,
        port=settings.port,
        api_keys=_api_keys(settings),
        otlp_endpoint=settings.otlp_endpoint,
        vllm_names=settings.vllm_names,
        metrics_api_key=(
            settings.metrics_api_key.get_secret_value() if settings.metrics_api_key else ""
        ),
        max_body_bytes=settings.max_body_bytes,
        keep_alive_seconds=settings.keep_alive,
        exit_without_engine=settings.without_engine == "exit",
        max_batch=settings.max_batch,
        max_queue=settings.max_queue,
        threads=settings.threads,
        connection_limit=settings.connection_limit,
        allowed_hosts=settings.allowed_hosts,
        allowed_origins=settings.allowed_origins,
        operations_port=settings.ops_port,
        operations_host=settings.ops_host,
        requests_per_minute=settings.requests_per_minute,
        tokens_per_minute=settings.tokens_per_minute,
        request_seconds=settings.request_timeout,
        queue_seconds=settings.queue_timeout,
        header_seconds=settings.header_timeout,
        body_seconds=settings.body_timeout,
        idle_seconds=settings.idle_timeout,
        drain_seconds=settings.shutdown_grace,
        defaults=RequestDefaults(max_tokens=settings.max_tokens),
    )


def _fetched(settings: Settings, retries: list[RetryReport]) -> str | None:
    """Return the directory of the model, fetched first where it is not on this machine.

    Fetching may import MLX, so it happens in a process of its own, which a
    signal to this one ends too. What it had to try again goes to ``retries``.
    """
    import signal

    from .engine.models.directory import inspect_directory
    from .engine.models.pull import ensure_local
    from .engine.models.store import Store
    from .resilience.errors import ModelError

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    try:
        directory = ensure_local(
            settings.model, Store(settings.cache_dir), report=_say, retried=retries.append
        )
        # A directory was looked at before; what the Hub sent is looked at here.
        inspect_directory(directory, code=settings.code_policy)
        return str(directory)
    except ModelError as error:
        _say(f"pharos: {error.message}")
        return None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _wants_help(arguments: Sequence[str]) -> bool:
    return "-h" in arguments or "--help" in arguments


def _serve_parser() -> argparse.ArgumentParser:
    from argparse import ArgumentParser

    from .sources import add_flags

    parser = ArgumentParser(
        prog="pharos serve",
        usage="pharos serve [--model M] [--port PORT] [...]",
        description="Serve a model over the OpenAI API. Ctrl-C or SIGTERM stops: "
        "running requests finish first.",
        epilog=_SOURCES,
    )
    add_flags(parser)
    return parser


def _doctor_parser() -> argparse.ArgumentParser:
    from argparse import ArgumentParser

    from .sources import add_flags

    parser = ArgumentParser(
        prog="pharos doctor",
        usage="pharos doctor [--json] [--model M] [--port PORT] [...]",
        description="Say whether `pharos serve` would work with the same settings, and what to "
        "mend. The exit code is 0 where it would, else 1.",
        epilog=_SOURCES,
    )
    parser.add_argument("--json", action="store_true", help="Print JSON for programs.")
    add_flags(parser)
    return parser


def _pull(arguments: Sequence[str]) -> int:
    """Fetch a model beforehand."""
    from argparse import ArgumentParser

    from .config import ConfigurationError, load_settings

    parser = ArgumentParser(
        prog="pharos pull",
        description="Fetch a model, convert it where needed, and verify it, so that pharos serve "
        "finds everything on this machine. It can be interrupted and run again.",
    )
    parser.add_argument(
        "model", metavar="M", nargs="?", help="as in pharos serve --model M; left out, as there"
    )
    parser.add_argument("--cache-dir", metavar="DIR", help="where models are kept")
    chosen = parser.parse_args(arguments)
    flags = ["--cache-dir", chosen.cache_dir] if chosen.cache_dir else []
    flags += ["--model", chosen.model] if chosen.model is not None else []
    try:
        settings = load_settings(flags)
    except ConfigurationError as error:
        _say(error.report())
        return EXIT_USAGE
    return _pull_here(settings)


def _pull_here(settings: Settings) -> int:
    from .engine.models.attempts import AttemptLog
    from .engine.models.pull import pull
    from .engine.models.source import classify
    from .engine.models.store import Store
    from .resilience.error_handler import ErrorHandler
    from .resilience.errors import ModelError
    from .resilience.retry import Retry

    try:
        source = classify(settings.model)
        retry = Retry(listener=AttemptLog(_say))
        store = Store(settings.cache_dir, ErrorHandler(retry=retry))
        result = pull(source, store, report=_say, progress=sys.stderr.isatty())
    except ModelError as error:
        _say(f"pharos: {error.message}")
        return EXIT_FAILED
    print(result.directory)
    return 0


def _keys(arguments: Sequence[str]) -> int:
    """Make, list and withdraw keys of clients."""
    from .config import ConfigurationError
    from .keys.command import run

    try:
        run(arguments)
    except ConfigurationError as error:
        _say(error.report("nothing was changed"))
        return EXIT_USAGE
    return 0


def _doctor(arguments: Sequence[str]) -> int:
    """Say whether serving would work with these settings; 1 where it would not."""
    if _wants_help(arguments):
        print(_doctor_parser().format_help(), end="")
        return 0
    from .doctor import print_report

    rest = [each for each in arguments if each != "--json"]
    try:
        can_serve = print_report(rest, as_json="--json" in arguments, output=sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the report has left, such as `head`. Python must not flush once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    return 0 if can_serve else EXIT_FAILED


def _service(arguments: Sequence[str]) -> int:
    """Print the file of a service manager."""
    what, *rest = arguments or [""]
    if what in {"-h", "--help"}:
        rest = ["--help"]
    elif what != "print":
        _say("pharos service: there is one command, `pharos service print`")
        return EXIT_USAGE
    from .service.command import print_service

    return print_service(rest)
