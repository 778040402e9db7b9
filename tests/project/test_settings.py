"""Settings: where they come from, and what a person is told when they are wrong."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_pharos.cli import _server_options
from mlx_pharos.config import ConfigurationError, Settings, load_settings
from mlx_pharos.server.options import ServerOptions
from mlx_pharos.settings import parse_size

if TYPE_CHECKING:
    from pathlib import Path


def _problems(*arguments: str) -> dict[str, str]:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(arguments)
    return {each.subject: each.text for each in caught.value.problems}


def test_defaults_listen_to_this_machine_alone() -> None:
    """Without any setting the starter model is served on 127.0.0.1:8080."""
    settings = load_settings()
    assert ("starter", "127.0.0.1", 8080) == (settings.model, settings.host, settings.port)


def test_flags_win_over_environment_over_file_over_defaults(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each source wins over the ones after it, setting by setting."""
    (tmp_path / "pharos.toml").write_text("port = 1001\nmax_batch = 1002\nmax_queue = 1003\n")
    monkeypatch.setenv("PHAROS_PORT", "2001")
    monkeypatch.setenv("PHAROS_MAX_BATCH", "2002")
    settings = load_settings(["--port", "3001"])
    expected = (3001, 2002, 1003, 0)
    assert expected == (settings.port, settings.max_batch, settings.max_queue, settings.threads)


def test_everything_wrong_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One report has the errors of the command line, the environment and the file."""
    (tmp_path / "pharos.toml").write_text('prot = 1\nmax_batch = "many"\n')
    monkeypatch.setenv("PHAROS_MODLE", "x")
    monkeypatch.setenv("PHAROS_MAX_QUEUE", "-1")
    problems = _problems("--port", "99999", "--tempo")
    expected = {
        "--tempo",
        "PHAROS_MODLE",
        "prot in pharos.toml",
        "max_batch in pharos.toml",
        "PHAROS_MAX_QUEUE",
        "--port",
    }
    assert expected == problems.keys()
    assert problems["PHAROS_MODLE"].endswith("did you mean PHAROS_MODEL?")
    assert problems["prot in pharos.toml"].endswith("did you mean port?")


def test_the_server_and_the_settings_have_the_same_defaults() -> None:
    """Whoever serves without the commands gets what the reference says."""
    assert ServerOptions(("starter",)) == _server_options(Settings())


def test_a_limit_is_compared_with_the_threads_that_there_will_be() -> None:
    """The settings, the doctor and the server count the threads alike, the spare ones included."""
    threads = ServerOptions(("m",)).thread_count
    assert str(threads) in _problems("--connection-limit", str(threads))["--connection-limit"]
    assert threads + 1 == load_settings(["--connection-limit", str(threads + 1)]).connection_limit


def test_a_report_never_shows_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a wrong key nor a right one is printed."""
    monkeypatch.setenv("PHAROS_API_KEY", " geheim ")
    with pytest.raises(ConfigurationError) as caught:
        load_settings(["--port", "x"])
    assert "PHAROS_API_KEY" in caught.value.report()
    assert "geheim" not in caught.value.report()
    assert "geheim" not in repr(Settings.model_validate({"api_key": "geheim"}))


def test_a_key_has_no_flag() -> None:
    """The key cannot be given as a flag, and the report says how else."""
    assert "PHAROS_API_KEY" in _problems("--api-key=geheim")["--api-key"]


def test_the_metrics_key_has_two_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metrics key is also read from the older server's variable; ours wins, neither is shown."""
    monkeypatch.setenv("METRICS_API_KEY", "alt")
    assert load_settings().metrics_api_key == pydantic.SecretStr("alt")
    monkeypatch.setenv("PHAROS_METRICS_API_KEY", "neu")
    assert load_settings().metrics_api_key == pydantic.SecretStr("neu")
    monkeypatch.setenv("PHAROS_METRICS_API_KEY", "")
    monkeypatch.setenv("METRICS_API_KEY", " geheim ")
    problems = _problems("--metrics-api-key", "x")
    assert "PHAROS_METRICS_API_KEY" in problems.pop("--metrics-api-key")
    assert "METRICS_API_KEY" in problems
    assert "geheim" not in str(problems)


@pytest.mark.parametrize(
    "url", ["localhost:4318", "ftp://x", "http://", "grpc://x:4317", "http://[x"]
)
def test_a_collector_is_a_url(url: str) -> None:
    """What cannot be an endpoint of OTLP over HTTP is refused before anything starts."""
    assert "--otlp-endpoint" in _problems("--otlp-endpoint", url)


def test_a_named_file_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was asked for and is missing is an error; a missing default is none."""
    assert _problems("--config", "none.toml") == {"none.toml": "there is no such file"}
    monkeypatch.setenv("PHAROS_CONFIG", "other.toml")
    assert _problems() == {"other.toml": "there is no such file"}


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    """A file that is not TOML is reported with the place of the error."""
    (tmp_path / "pharos.toml").write_text("port =\n")
    assert "line 1" in _problems()["pharos.toml"]


def test_an_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable, as containers pass it, leaves the default."""
    monkeypatch.setenv("PHAROS_PORT", "")
    assert load_settings().port == 8080


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        *(("PHAROS_KEEP_ALIVE", text) for text in ("nan", "inf", "-inf", "1e999", "1_0", "0x1p3")),
        *(
            ("PHAROS_PORT", text)
            for text in ("80_80", " 8080", "\uff18\uff10", "8080.0", "1e3", "+80")
        ),
        *(("PHAROS_OPS_PORT", text) for text in ("true", "80_80", "nan", " ")),
        *(("PHAROS_PORT", text) for text in ("true", "  ", "8080\n", "nan")),
        *(
            ("PHAROS_PROMPT_CACHE", text)
            for text in ("٩", "9" * 400, "-1", "inf", "1e3", "9" * 5000)
        ),
        *((f"PHAROS_{name}", "  ") for name in ("HOST", "MODEL", "CACHE_DIR", "LOG_LEVEL")),
        *((f"PHAROS_{name}", "a\x1b[2Jb") for name in ("HOST", "MODEL", "CACHE_DIR")),
        ("PHAROS_HOST", "127.0.0.1 "),
        ("PHAROS_WIRED_LIMIT", "maybe"),
    ],
)
def test_a_value_that_its_writer_would_not_recognise_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str
) -> None:
    """Blanks, not-a-number, infinity and numbers in odd spellings are named, never guessed at."""
    monkeypatch.setenv(variable, text)
    assert _problems().keys() == {variable}


@pytest.mark.parametrize(
    "line",
    ["port = true", "keep_alive = nan", "keep_alive = inf", "prompt_cache = true", "host = 1"],
)
def test_a_value_of_another_kind_in_the_file_is_refused(tmp_path: Path, line: str) -> None:
    """TOML has kinds of its own; none of them turns into another quietly."""
    (tmp_path / "pharos.toml").write_text(line)
    assert [f"{line.split(maxsplit=1)[0]} in pharos.toml"] == [*_problems()]


@given(st.sampled_from([*Settings.model_fields]), st.text())
def test_any_text_is_a_setting_or_a_problem(field: str, text: str) -> None:
    """Whatever a variable holds, it is a value in range or an error in words."""
    try:
        found = getattr(Settings.model_validate({field: text}), field)
    except pydantic.ValidationError:
        return
    assert not isinstance(found, float) or math.isfinite(found)


def test_too_few_threads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer threads than requests that can be admitted would make health checks wait."""
    monkeypatch.setenv("PHAROS_THREADS", "10")
    assert "max_batch + max_queue (96)" in _problems()["PHAROS_THREADS"]


def test_settings_are_frozen() -> None:
    """Nobody changes a setting after the start."""
    with pytest.raises(pydantic.ValidationError):
        Settings().port = 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4096", 4096),
        ("10MiB", 10 * 1024**2),
        ("10 mb", 10_000_000),
        ("1.5GiB", 3 * 1024**3 // 2),
        ("2k", 2000),
        ("0", 0),
    ],
)
def test_sizes_are_read(text: str, expected: int) -> None:
    """Sizes are bytes, in powers of 1000 or, with an i, of 1024."""
    assert expected == parse_size(text)


@given(st.text())
def test_any_text_is_a_size_or_refused_in_words(text: str) -> None:
    """A size that cannot be read is refused with an example, whatever it is."""
    try:
        size = parse_size(text)
    except ValueError as error:
        size = error
    assert isinstance(size, int) or "10MiB" in str(size)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("starter", "starter"),
        ("mlx-community/Some-Model-4bit", "mlx-community/Some-Model-4bit"),
        ("/models/SmolLM2/", "SmolLM2"),
        ("./llama.Q4_0.gguf", "llama.Q4_0"),
    ],
)
def test_the_served_name_comes_from_the_model(model: str, expected: str) -> None:
    """Without a name of its own, a model is served under the name that people would type."""
    assert (expected,) == Settings(model=model).served_names
    assert Settings(model=model, served_model_name=("a", "b")).served_names == ("a", "b")


@pytest.mark.parametrize("names", ["a,,b", "a b", "a,a", "x" * 257, "a\x00"])
def test_names_that_no_request_can_use_are_refused(names: str) -> None:
    """A served name is short, printable, without spaces, and given once."""
    assert "--served-model-name" in _problems("--served-model-name", names)
