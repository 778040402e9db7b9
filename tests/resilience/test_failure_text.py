"""What a log says of an exception: kind and place, and text of a known shape alone."""

from __future__ import annotations

import errno
import io
import logging
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_pharos.resilience.errors import ModelError
from mlx_pharos.resilience.failure_text import SanitizedFormatter, describe_failure
from mlx_pharos.telemetry.log import configure_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PLANT = "Zq9planted"


def _caught(error: BaseException) -> BaseException:
    try:
        raise error  # noqa: TRY301 - it needs a traceback
    except BaseException as caught:  # noqa: BLE001
        return caught


def _unicode_error() -> Exception:
    try:
        f"{_PLANT}\ud800".encode()
    except UnicodeEncodeError as error:
        return error
    raise AssertionError


_ERRORS: list[Callable[[], BaseException]] = [
    lambda: ValueError(f"bad prompt: {_PLANT}"),
    lambda: KeyError(_PLANT),
    lambda: RuntimeError(f"[{_PLANT}"),
    lambda: RuntimeError(f"[load] cannot open /home/{_PLANT}/model"),
    lambda: RuntimeError(f"[x] key=/{_PLANT}"),
    lambda: FileNotFoundError(errno.ENOENT, _PLANT, f"/srv/{_PLANT}"),
    lambda: OSError(_PLANT),
    lambda: ModelError(f"/srv/{_PLANT}/x is damaged, api_key={_PLANT}"),
    lambda: UnicodeDecodeError("utf-8", _PLANT.encode() + b"\xff", 10, 11, _PLANT),
    _unicode_error,
    lambda: RecursionError(_PLANT),
    lambda: MemoryError(_PLANT),
    lambda: AssertionError(_PLANT),
    lambda: ExceptionGroup(_PLANT, [ValueError(_PLANT)]),
]


@given(chain=st.lists(st.sampled_from(_ERRORS), min_size=1, max_size=4))
def test_nothing_planted_is_told(chain: list[Callable[[], BaseException]]) -> None:
    """Whatever chain of exceptions quotes a prompt, a key or a path: the kinds are told."""
    error = _caught(chain[0]())
    for make in chain[1:]:
        cause, error = error, make()
        error.__cause__ = cause
        error = _caught(error)
    told = describe_failure(error)
    assert _PLANT not in told
    assert "/" not in told
    assert type(error).__name__ in told


def test_the_place_is_module_function_and_line() -> None:
    """No path of a source file, and all that is needed to find the line."""
    error = _caught(ValueError("x"))
    assert error.__traceback__ is not None
    expected = f"  at {__name__}:_caught:{error.__traceback__.tb_lineno}\nValueError"
    assert expected == describe_failure(error)


def test_text_of_a_known_shape_is_told() -> None:
    """What MLX says, the number of a system's error, the module that is missing, and our own."""
    told = [
        describe_failure(RuntimeError("[malloc] Unable to allocate 123 bytes.")),
        describe_failure(OSError(errno.ENOSPC, "x")),
        describe_failure(ImportError("x", name="mlx.core")),
        describe_failure(ModelError("The model is damaged.")),
    ]
    assert [
        "RuntimeError: [malloc] Unable to allocate 123 bytes.",
        "OSError: ENOSPC",
        "ImportError: mlx.core",
        "mlx_pharos.resilience.errors.ModelError: The model is damaged.",
    ] == told


def test_an_operator_can_ask_for_all_text() -> None:
    """With it, sanitized."""
    told = describe_failure(ValueError("bad: /home/ann/x"), with_text=True)
    assert "ValueError: bad: [path]" == told


def test_a_long_recursion_and_a_long_chain_are_cut() -> None:
    """A log line is bounded, whatever failed."""

    def deep(rest: int) -> None:
        if not rest:
            raise ValueError
        deep(rest - 1)

    error: BaseException = ValueError()
    try:
        deep(100)
    except ValueError as caught:
        error = caught
    assert 33 >= len(describe_failure(error).splitlines())
    for _ in range(50):
        last = ValueError()
        last.__cause__ = error
        error = last
    assert 60 > len(describe_failure(error).splitlines())
    error.__cause__ = error
    assert describe_failure(error)


@pytest.fixture
def _log_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.mark.usefixtures("_log_as_before")
@pytest.mark.parametrize("style", ["json", "console", "engine"])
@pytest.mark.parametrize("logger", ["mlx_pharos.server", "some.library"])
def test_no_log_line_holds_what_was_planted(style: str, logger: str) -> None:
    """In both processes, in messages, in a library's fields, in exceptions and in stacks."""
    stream = io.StringIO()
    if style == "engine":
        handler = logging.StreamHandler(stream)
        handler.setFormatter(SanitizedFormatter("%(levelname)s engine: %(message)s"))
        logging.basicConfig(handlers=[handler], level="WARNING", force=True)
    else:
        configure_log(style="json" if style == "json" else "console", stream=stream)
    log = logging.getLogger(logger)
    for make in _ERRORS:
        try:
            raise make()  # noqa: TRY301 - as above
        except Exception:
            log.exception("cannot read %s: token=%s", f"/srv/{_PLANT}/x", _PLANT)
    if logger == "some.library":
        log.warning("fetched", extra={"address": f"https://a:{_PLANT}@host/x"})
    log.error("cannot read ~/x", stack_info=True)
    lines = stream.getvalue()
    assert _PLANT not in lines
    assert sys.prefix not in lines
    assert lines.count("cannot read") == len(_ERRORS) + 1
    assert f"{__name__}:test_no_log_line_holds_what_was_planted" in lines


def test_what_nobody_caught_ends_in_the_log() -> None:
    """In the main thread and in others: the place and the kind, no path, no text."""
    code = """
import logging, threading
from mlx_pharos.resilience.failure_text import SanitizedFormatter, log_uncaught
handler = logging.StreamHandler()
handler.setFormatter(SanitizedFormatter("%(levelname)s %(message)s"))
logging.basicConfig(handlers=[handler])
log_uncaught(logging.getLogger("it"))
def fail():
    raise ValueError("Zq9planted")
thread = threading.Thread(target=fail, name="worker")
thread.start()
thread.join()
fail()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 1 == done.returncode
    assert "ERROR the thread worker ended\n  at threading:" in done.stderr
    assert (
        "CRITICAL the process ends\n  at __main__:<module>:13\n  at __main__:fail:9" in done.stderr
    )
    assert _PLANT not in done.stderr
    assert "/" not in done.stderr
