"""OpenTelemetry's own variables: what each may be, said before the SDK reads it.

The SDK warns and takes its default, raises while it is imported, or writes a header with its key
into the log. So nothing here imports it, and every check takes what the SDK takes and no more.
What is wrong is a sentence without the variable's name; where a value may be a secret, without it.
"""

from __future__ import annotations

import math
import os
import re
from importlib.metadata import entry_points
from typing import TYPE_CHECKING
from urllib.parse import unquote

from .content import CAPTURE_VARIABLE, capture_problem
from .signals import SIGNALS

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["drop_empty_variables", "headers_problem", "variable_problems"]

_MOST = 2**31 - 1
"""The largest number: what OpenTelemetry wants to be read at least, and waits can have."""
_LONGEST = 40
"""Characters of a value that are shown."""
_SIGNALS = tuple(each.upper() for each in SIGNALS)
_WHOLE_NUMBERS = tuple(
    f"{prefix}_{name}"
    for prefix in ("OTEL_BSP", "OTEL_BLRP")
    for name in ("SCHEDULE_DELAY", "EXPORT_TIMEOUT", "MAX_QUEUE_SIZE", "MAX_EXPORT_BATCH_SIZE")
)
_NUMBERS = (
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    *(f"OTEL_EXPORTER_OTLP_{signal}_TIMEOUT" for signal in _SIGNALS),
    "OTEL_METRIC_EXPORT_INTERVAL",
    "OTEL_METRIC_EXPORT_TIMEOUT",
)
_LIMITS = (
    *(
        f"OTEL_{of}ATTRIBUTE_{what}_LIMIT"
        for of in ("", "SPAN_", "LOGRECORD_")
        for what in ("COUNT", "VALUE_LENGTH")
    ),
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
)
_CHOICES = {
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": ("cumulative", "delta", "lowmemory"),
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": (
        "base2_exponential_bucket_histogram",
        "explicit_bucket_histogram",
    ),
}
_RATIOS = ("traceidratio", "parentbased_traceidratio")
_SAMPLERS = (
    "always_on",
    "always_off",
    "parentbased_always_on",
    "parentbased_always_off",
    *_RATIOS,
)
_TOKEN = re.compile(r"[!#-'*+.0-9A-Z^-z|~-]+")
"""The name of a header."""
_VALUE = re.compile(r"[ !#-+\--:<-\[\]-~]*")
"""The value of a header before it is decoded: no comma, semicolon, quotation mark or backslash."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def drop_empty_variables() -> None:
    """Unset OpenTelemetry's variables that are empty: they count as unset, but not for all of the SDK.

    To be called before the SDK is imported, and before other threads read variables.
    """
    for name in [each for each, value in os.environ.items() if not value]:
        if name.startswith("OTEL_"):
            del os.environ[name]


def variable_problems(*, disabled: bool) -> dict[str, str]:
    """Return what is wrong, by variable. Empty ones count as unset.

    Args:
        disabled: Whether telemetry is switched off: then what the SDK reads all the same is checked.
    """
    checks: list[tuple[str, Callable[[str], str]]] = [
        ("OTEL_SDK_DISABLED", _truth),
        ("OTEL_METRICS_EXEMPLAR_FILTER", _exemplar_filter),
        ("OTEL_PROPAGATORS", _propagators),
        ("OTEL_PYTHON_CONTEXT", _context),
        ("OTEL_RESOURCE_ATTRIBUTES", _resource_attributes),
        *((name, _limit) for name in _LIMITS),
    ]
    if not disabled:
        checks += [
            *((name, _number) for name in _NUMBERS),
            *((name, _whole_number) for name in _WHOLE_NUMBERS),
            *((name, _choice_of(values)) for name, values in _CHOICES.items()),
            ("OTEL_TRACES_SAMPLER", _sampler),
            ("OTEL_TRACES_SAMPLER_ARG", _share),
            (CAPTURE_VARIABLE, lambda _: capture_problem()),
        ]
    given = ((name, check, os.environ.get(name, "")) for name, check in checks)
    found = ((name, check(value)) for name, check, value in given if value)
    return {name: problem for name, problem in found if problem}


def headers_problem(text: str, encoding: str) -> str:
    """Return what is wrong with a list of headers, without any of it; empty if nothing is.

    Args:
        text: As a variable has it: ``name=value`` with commas between, values as in URLs.
        encoding: What values have to be written in.
    """
    for place, entry in enumerate(text.split(","), 1):
        if entry.strip() and not _is_header(entry, encoding):
            return (
                "should be name=value with commas between, each value as in a URL (%20 for a space, "
                f"%2C for a comma); entry {place} is not"
            )
    return ""


def _is_header(entry: str, encoding: str) -> bool:
    name, equals, value = (part.strip(" \t") for part in entry.strip().partition("="))
    if not (equals and _TOKEN.fullmatch(name) and _VALUE.fullmatch(value)):
        return False
    decoded = unquote(value)
    try:
        decoded.encode(encoding)
    except UnicodeEncodeError:
        return False
    return bool(_TOKEN.fullmatch(unquote(name).strip())) and not _CONTROL.search(decoded.strip())


def _problem(wanted: str, value: str) -> str:
    return f"should be {wanted}; it is {value[:_LONGEST]!r}"


def _truth(value: str) -> str:
    return "" if value.strip().lower() in {"true", "false"} else _problem("true or false", value)


def _number(value: str) -> str:
    try:
        is_right = math.isfinite(float(value)) and 0 < float(value) <= _MOST
    except ValueError:
        is_right = False
    return "" if is_right else _problem(f"a number greater than 0, at most {_MOST}", value)


def _whole_number(value: str) -> str:
    if 0 < _integer(value) <= _MOST:
        return ""
    return _problem(f"a whole number greater than 0, at most {_MOST}", value)


def _limit(value: str) -> str:
    return "" if _integer(value) >= 0 else _problem("a whole number, 0 or more", value)


def _integer(value: str) -> int:
    """Return what the SDK reads; -1 for what it does not read as an integer."""
    try:
        return int(value)
    except ValueError:
        return -1


def _choice_of(values: tuple[str, ...]) -> Callable[[str], str]:
    def check(value: str) -> str:
        return "" if value.strip().lower() in values else _problem(_listed(values), value)

    return check


def _listed(values: tuple[str, ...]) -> str:
    return f"{', '.join(values[:-1])} or {values[-1]}"


def _sampler(value: str) -> str:
    # The SDK takes no blank around it.
    return "" if value.lower() in _SAMPLERS else _problem(_listed(_SAMPLERS), value)


def _share(value: str) -> str:
    """Look at the sampler's argument where the sampler has one."""
    if os.environ.get("OTEL_TRACES_SAMPLER", "").lower() not in _RATIOS:
        return ""
    try:
        is_right = 0 <= float(value) <= 1
    except ValueError:
        is_right = False
    return "" if is_right else _problem("a number from 0 to 1", value)


def _exemplar_filter(value: str) -> str:
    # Exemplars are kept here and not by the SDK: others would be accepted, and change nothing.
    if value == "trace_based":
        return ""
    return _problem("trace_based, because exemplars are of traces that are sent", value)


def _propagators(value: str) -> str:
    known = _installed("opentelemetry_propagator")
    for name in map(str.strip, value.split(",")):
        if name.lower() == "none":  # the SDK looks no further
            return ""
        if name not in known:
            return _problem(f"none, or of {', '.join(known)}, with commas between", value)
    return ""


def _context(value: str) -> str:
    known = _installed("opentelemetry_context")
    return "" if value in known else _problem(" or ".join(known), value)


def _installed(group: str) -> list[str]:
    return sorted(entry_points(group=group).names)


def _resource_attributes(value: str) -> str:
    for place, entry in enumerate(value.split(","), 1):
        name, equals, _ = entry.partition("=")
        if entry.strip() and not (equals and name.strip()):
            return f"should be name=value with commas between; entry {place} is not"
    return ""
