"""Prometheus' two text formats, written from families of samples.

A scrape has some thousand lines and comes every second on a busy day, and while
it is written all streams wait. So nothing is made again that is there: neither
the lines of a histogram in which nothing was counted, nor what a line begins
with. With prometheus_client's objects it took ten times as long and more. Tests
read the outcome with prometheus_client's parsers and with promtool.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = [
    "OPENMETRICS",
    "PLAIN",
    "Family",
    "Format",
    "HistogramSample",
    "Mark",
    "Sample",
    "choose_format",
    "write",
]


@dataclass(frozen=True, slots=True)
class Format:
    """One of the two formats."""

    content_type: str
    openmetrics: bool


PLAIN = Format("text/plain; version=0.0.4; charset=utf-8", openmetrics=False)
OPENMETRICS = Format("application/openmetrics-text; version=1.0.0; charset=utf-8", openmetrics=True)


@dataclass(frozen=True, slots=True)
class Mark:
    """An exemplar: one value of a bucket, with the trace that it belongs to."""

    trace_id: int
    span_id: int
    value: float
    at: float
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a series."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class HistogramSample:
    """One series of a histogram as it was at one moment. It remembers its lines."""

    labels: Mapping[str, str]
    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    """Per bucket, the last one without an upper bound; not yet summed up."""
    total: float
    marks: Mapping[int, Mark] = field(default_factory=dict)
    """By the index of the bucket."""
    texts: dict[tuple[str, bool], str] = field(default_factory=dict, repr=False, compare=False)
    """What was written of it, by name, and whether with exemplars."""


@dataclass(slots=True)
class Family:
    """All series of one name."""

    name: str
    """Without ``_total``."""
    kind: Literal["counter", "gauge", "histogram", "info"]
    text: str
    unit: str = ""
    samples: list[Sample | HistogramSample] = field(default_factory=list)


def choose_format(accept: str) -> Format:
    """Return the format that an ``Accept`` header likes best; plain text where it does not say."""
    best, chosen = 0.0, PLAIN
    for part in accept.split(","):
        media, *parameters = (each.strip() for each in part.split(";"))
        given = dict(each.split("=", 1) for each in parameters if "=" in each)
        try:
            weight = float(given.get("q", "1"))
        except ValueError:
            continue
        if media.lower() == "application/openmetrics-text" and weight > best:
            best, chosen = weight, OPENMETRICS
        elif media.lower() in {"text/plain", "text/*"} and weight > best:
            best, chosen = weight, PLAIN
    return chosen


def write(families: Iterable[Family], form: Format) -> str:
    """Return the whole exposition."""
    lines: list[str] = []
    for family in families:
        lines += _head(family, form)
        for sample in family.samples:
            if isinstance(sample, HistogramSample):
                lines.append(_histogram(family.name, sample, form))
            else:
                name = family.name + {"counter": "_total", "info": "_info"}.get(family.kind, "")
                lines.append(f"{name}{_braces(_labels(sample.labels))} {_number(sample.value)}")
    if form.openmetrics:
        lines.append("# EOF")
    return "\n".join([*lines, ""])


def _head(family: Family, form: Format) -> Iterator[str]:
    name, kind = family.name, family.kind
    text = family.text.replace("\\", r"\\").replace("\n", r"\n")
    if form.openmetrics:
        yield f"# TYPE {name} {kind}"
        if family.unit:
            yield f"# UNIT {name} {family.unit}"
        yield "# HELP {} {}".format(name, text.replace('"', r"\""))
        return
    if kind == "counter":
        name += "_total"
    elif kind == "info":
        name, kind = f"{name}_info", "gauge"
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def _histogram(name: str, sample: HistogramSample, form: Format) -> str:
    key = (name, form.openmetrics)
    text = sample.texts.get(key)
    if text is None:
        text = sample.texts[key] = "\n".join(_histogram_lines(name, sample, form))
    return text


def _histogram_lines(name: str, sample: HistogramSample, form: Format) -> Iterator[str]:
    labels = _labels(sample.labels)
    seen = 0
    marks = sample.marks if form.openmetrics else {}
    for place, start in enumerate(_bucket_starts(name, labels, sample.bounds)):
        seen += sample.counts[place]
        if place in marks:
            yield f"{start}{seen}{_exemplar(marks[place])}"
        else:
            yield f"{start}{seen}"
    yield f"{name}_count{_braces(labels)} {seen}"
    yield f"{name}_sum{_braces(labels)} {_number(sample.total)}"


@lru_cache(maxsize=512)
def _bucket_starts(name: str, labels: str, bounds: tuple[float, ...]) -> tuple[str, ...]:
    """Return what the lines of a series' buckets begin with. A server has some dozen series."""
    start = name + "_bucket{" + (f"{labels}," if labels else "") + 'le="'
    return tuple(f'{start}{bound}"}} ' for bound in (*map(_number, bounds), "+Inf"))


def _exemplar(mark: Mark) -> str:
    ids = f'trace_id="{mark.trace_id:032x}",span_id="{mark.span_id:016x}"'
    return f" # {{{ids}}} {_number(mark.value)} {mark.at:.3f}"


def _labels(labels: Mapping[str, str]) -> str:
    return ",".join([f'{name}="{_escaped(value)}"' for name, value in labels.items()])


def _braces(labels: str) -> str:
    return f"{{{labels}}}" if labels else ""


def _escaped(value: str) -> str:
    if not value.isascii():
        # Bytes of an argument or variable that are no UTF-8 came as halves of surrogate pairs.
        value = value.encode("utf-8", "replace").decode()
    if '"' in value or "\\" in value or "\n" in value:
        return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return value


def _number(value: float) -> str:
    return {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}.get(text := repr(float(value)), text)
