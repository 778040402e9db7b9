"""Where settings come from: flags over environment over ``pharos.toml`` over defaults.

Everything that is wrong, in all sources, is collected into one
:class:`ConfigurationError`, so that a person mends it in one go.
"""

from __future__ import annotations

import argparse
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_origin

import pydantic
from pydantic_settings import EnvSettingsSource

from .settings import GROUPS, Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

__all__ = [
    "CONFIG_FILE",
    "CONFIG_VARIABLE",
    "PREFIX",
    "ConfigurationError",
    "Problem",
    "add_flags",
    "allowed_values",
    "flag_of",
    "load_settings",
    "shown_default",
    "unknown_variable",
    "variable_of",
]

PREFIX = "PHAROS_"
_COMPARED = frozenset({"threads", "connection_limit", "max_batch", "max_queue"})
"""The settings that are compared with each other."""
FOREIGN_VARIABLES = {"METRICS_API_KEY": "metrics_api_key"}
"""Variables of an older server, which its users have set already; ours win over them."""
CONFIG_FILE = "pharos.toml"
_COMMAND_LINE = "command line"
CONFIG_VARIABLE = "PHAROS_CONFIG"

SECRETS = tuple(
    name
    for name, info in Settings.model_fields.items()
    if isinstance(info.json_schema_extra, dict) and not info.json_schema_extra["flag"]
)
"""Settings without a flag: other users of a machine see the flags of a process."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong, in words for the operator."""

    subject: str
    """What is at fault: a flag, a variable, a key, a file, a package."""
    text: str
    """What is wrong with it and what would be right. Never holds a secret."""


class ConfigurationError(Exception):
    """The server cannot start as it is configured; ``problems`` has every reason."""

    usable: Settings | None = None
    """What is left of the settings without the wrong ones; None where that cannot be said."""
    wrong_fields: frozenset[str] = frozenset()
    """The settings whose value is wrong."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{each.subject}: {each.text}" for each in self.problems))

    def report(self, outcome: str = "nothing was started") -> str:
        """Return the problems as lines for a terminal, after what became of the command."""
        count = len(self.problems)
        head = "one thing is" if count == 1 else f"{count} things are"
        width = min(28, max((len(each.subject) for each in self.problems), default=0))
        lines = [f"  {each.subject:{width}}  {each.text}" for each in self.problems]
        return "\n".join(
            [
                f"pharos: {outcome}, because {head} wrong:",
                "",
                *lines,
                "",
                "`pharos serve --help` lists every setting.",
            ]
        )


class _FlagError(Exception):
    """A command line that cannot be read."""


class _FlagParser(argparse.ArgumentParser):
    """A parser that raises instead of ending the process at the first error."""

    def error(self, message: str) -> NoReturn:
        raise _FlagError(message)


def flag_of(field: str) -> str:
    """Return the command line flag of a field."""
    return "--" + field.replace("_", "-")


def variable_of(field: str) -> str:
    """Return the environment variable of a field."""
    return PREFIX + field.upper()


def _extra(info: FieldInfo) -> dict[str, Any]:
    extra = info.json_schema_extra
    assert isinstance(extra, dict)
    return extra


def shown_default(name: str, info: FieldInfo) -> str:
    """Return a default as a person would write it."""
    value = info.default
    if value is None or value == ():
        return "unset"
    if name == "max_body_bytes":
        return f"{value // 1024**2}MiB"
    if name == "cache_dir":
        return "~/.cache/pharos; on macOS ~/Library/Caches/pharos"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def allowed_values(info: FieldInfo) -> str:
    """Return in a few words which values a field takes."""
    bounds = {
        bound: getattr(each, bound)
        for each in info.metadata
        for bound in ("ge", "gt", "le")
        if getattr(each, bound, None) is not None
    }
    if get_origin(info.annotation) is not None and all(
        isinstance(each, str) for each in get_args(info.annotation)
    ):
        return ", ".join(get_args(info.annotation))
    if info.annotation is bool:
        return "true, false"
    if _extra(info)["metavar"] == "SIZE":
        return "a size" if info.annotation is int else "auto, 0 or a size"
    if "le" in bounds:
        low = f"{bounds['ge']:g} to" if "ge" in bounds else f"more than {bounds['gt']:g}, up to"
        return f"{low} {bounds['le']}"
    return "text"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give a parser one flag per setting, grouped, without defaults: unset stays unset."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help=f"Read settings from this file. [{CONFIG_FILE}, where it exists]",
    )
    for title in GROUPS:
        group = parser.add_argument_group(title)
        for name, info in Settings.model_fields.items():
            extra = _extra(info)
            if extra["group"] != title or not extra["flag"]:
                continue
            text = f"{info.description} [{shown_default(name, info)}]"
            options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS}
            options["help"] = text.replace("%", "%%")
            if info.annotation is bool:
                options["action"] = argparse.BooleanOptionalAction
            else:
                options["metavar"] = extra["metavar"] or "|".join(get_args(info.annotation))
            group.add_argument(flag_of(name), **options)


def _read_flags(arguments: Sequence[str]) -> tuple[dict[str, Any], list[Problem]]:
    parser = _FlagParser(add_help=False, allow_abbrev=False)
    add_flags(parser)
    try:
        found, unknown = parser.parse_known_args(arguments)
    except _FlagError as error:
        return {}, [Problem(subject=_COMMAND_LINE, text=str(error))]
    known = [flag_of(name) for name in Settings.model_fields if name not in SECRETS] + ["--config"]
    secrets = {flag_of(name): variable_of(name) for name in SECRETS}
    problems = []
    for each in unknown:
        flag = each.partition("=")[0]
        if flag in secrets:
            text = f"has no flag, because other users could see it: set {secrets[flag]}"
            problems.append(Problem(subject=flag, text=text))
        elif each.startswith("-"):
            problems.append(Problem(subject=flag, text=_unknown("flag", flag, known)))
        elif not problems:
            text = "is not a flag; a value stands after its flag"
            if "model" not in vars(found):
                text = f"is not a flag; did you mean --model {each}?"
            problems.append(Problem(subject=each, text=text))
    return vars(found), problems


def _read_environment(environment: Mapping[str, str]) -> tuple[dict[str, Any], list[Problem]]:
    known = _variables()
    problems = [
        Problem(subject=each, text=unknown_variable(each))
        for each in sorted(environment)
        if each.startswith(PREFIX) and each not in known
    ]
    foreign = {
        field: environment[name]
        for name, field in FOREIGN_VARIABLES.items()
        if environment.get(name)
    }
    return foreign | EnvSettingsSource(Settings)(), problems


def unknown_variable(name: str) -> str:
    """Say that no setting has this variable, and which one may be meant."""
    return _unknown("variable", name, _variables())


def _variables() -> list[str]:
    return [variable_of(name) for name in Settings.model_fields] + [CONFIG_VARIABLE]


def _read_file(path: Path, *, required: bool) -> tuple[dict[str, Any], list[Problem]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}, [Problem(subject=str(path), text="there is no such file")] if required else []
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        return {}, [Problem(subject=str(path), text=f"cannot be read: {reason}")]
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return {}, [Problem(subject=str(path), text=f"is not valid TOML: {error}")]
    known = list(Settings.model_fields)
    problems = [
        Problem(subject=f"{each} in {path}", text=_unknown("key", each, known))
        for each in values
        if each not in known
    ]
    return {key: value for key, value in values.items() if key in known}, problems


def _unknown(kind: str, name: str, known: Sequence[str]) -> str:
    # Imported here: it is needed only for the person who made a mistake.
    from difflib import get_close_matches  # noqa: PLC0415

    near = get_close_matches(name.replace("-", "_") if kind == "key" else name, known, n=1)
    return f"is no known {kind}; did you mean {near[0]}?" if near else f"is no known {kind}"


def _problem_of(error: ErrorDetails, given: Mapping[str, str]) -> Problem:
    """Say in one line what pydantic found, and where the value came from."""
    text = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    name, value = str(error["loc"][0]), error["input"]
    if name not in SECRETS and isinstance(value, str | int | float):
        text += f"; it is {value!r}" if len(repr(value)) <= 60 else ""  # noqa: PLR2004 - a line's worth
    return Problem(subject=given.get(name, name), text=text)


def load_settings(arguments: Sequence[str] = (), *, directory: Path | None = None) -> Settings:
    """Read the settings of this process.

    Args:
        arguments: The command line after the command's name.
        directory: Where ``pharos.toml`` is looked for; the working directory by default.

    Raises:
        ConfigurationError: Anything in any source is wrong; all of it is named.
    """
    flags, problems = _read_flags(arguments)
    unreadable = any(each.subject == _COMMAND_LINE for each in problems)
    environment, found = _read_environment(os.environ)
    problems += found
    chosen = flags.pop("config", None) or os.environ.get(CONFIG_VARIABLE)
    path = Path(chosen).expanduser() if chosen else (directory or Path()) / CONFIG_FILE
    file, found = _read_file(path, required=bool(chosen))
    problems += found
    given = {name: f"{name} in {path}" for name in file}
    given |= {name: variable_of(name) for name in environment}
    given |= {
        field: name
        for name, field in FOREIGN_VARIABLES.items()
        if os.environ.get(name) and not os.environ.get(variable_of(field))
    }
    given |= {name: flag_of(name) for name in flags}
    try:
        return _validated({**file, **environment, **flags}, given, problems)
    except ConfigurationError as error:
        if unreadable:  # what the flags would have said is not known: the machine is not asked
            error.usable = None
        raise


def _wrong_fields(error: pydantic.ValidationError, given: Mapping[str, str]) -> dict[str, Problem]:
    """Return the first problem of each field, also where fields do not go together."""
    found: dict[str, Problem] = {}
    for each in error.errors(include_url=False, include_context=False):
        if each["loc"]:
            found.setdefault(str(each["loc"][0]), _problem_of(each, given))
            continue
        for line in each["msg"].removeprefix("Value error, ").splitlines():
            name, _, text = line.partition(" ")
            found[name] = Problem(subject=given.get(name, name), text=text)
    return found


def _validated(
    values: dict[str, Any], given: Mapping[str, str], problems: list[Problem]
) -> Settings:
    """Make the settings, or raise with what was wrong before and what is wrong now."""
    wrong: set[str] = set()
    settings: Settings | None = None
    # At most three times: first the fields are wrong, then what they are together.
    while settings is None:
        rest = {name: value for name, value in values.items() if name not in wrong}
        try:
            settings = Settings.model_validate(rest)
        except pydantic.ValidationError as error:
            found = _wrong_fields(error, given)
            # With the default of a field that is wrong, a comparison says nothing.
            compared = wrong & _COMPARED
            problems += [p for name, p in found.items() if not (compared and name in _COMPARED)]
            wrong |= found.keys()
    if problems:
        report = ConfigurationError(problems)
        report.usable, report.wrong_fields = settings, frozenset(wrong)
        raise report
    return settings
