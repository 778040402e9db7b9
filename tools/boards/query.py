"""PromQL for the instruments of the catalog, under the names that Prometheus has for them."""

from __future__ import annotations

from mlx_pharos.telemetry.catalog import BY_NAME

__all__ = ["average", "gauge", "heat", "increase", "or_none", "quantile", "rate", "share"]

_WINDOW = "$__rate_interval"


def _selected(instrument: str, suffix: str = "", *, where: str = "", total: bool = True) -> str:
    declared = BY_NAME[instrument]
    name = declared.prometheus_name if total else declared.prometheus_family
    matchers = ",".join(each for each in ('instance=~"$instance"', where) if each)
    return f"{name}{suffix}{{{matchers}}}"


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""


def gauge(instrument: str, *, by: str = "", where: str = "", over: str = "sum") -> str:
    """Return a state, added up over the chosen servers."""
    return f"{over}{_by(by)} ({_selected(instrument, where=where)})"


def rate(instrument: str, *, by: str = "", where: str = "", part: str = "") -> str:
    """Return how much a total, or a histogram's ``_count`` or ``_sum``, grows a second."""
    return f"sum{_by(by)} (rate({_selected(instrument, part, where=where)}[{_WINDOW}]))"


def increase(instrument: str, *, by: str = "", where: str = "") -> str:
    """Return how much a total grew within the chosen time."""
    return f"sum{_by(by)} (increase({_selected(instrument, where=where)}[$__range]))"


def share(part: str, whole: str) -> str:
    """Return a part of a whole; nothing while there is no whole."""
    return f"({part}) / ({whole} > 0)"


def or_none(query: str, *, label: str = "") -> str:
    """Return a query for events that may not have happened: then it is one series of zeros."""
    zero = f'label_replace(vector(0), "{label}", "none", "", "")' if label else "vector(0)"
    return f"{query} or on() {zero}"


def quantile(level: float, instrument: str, *, by: str = "", where: str = "") -> str:
    """Return a quantile of a histogram; exact to its buckets."""
    labels = f"le, {by}" if by else "le"
    buckets = _selected(instrument, "_bucket", where=where)
    return f"histogram_quantile({level}, sum by ({labels}) (rate({buckets}[{_WINDOW}])))"


def average(instrument: str) -> str:
    """Return the mean of a histogram's values."""
    return share(rate(instrument, part="_sum"), rate(instrument, part="_count"))


def heat(instrument: str, *, where: str = "") -> str:
    """Return what a heatmap shows: values by bucket."""
    return f"sum by (le) (increase({_selected(instrument, '_bucket', where=where)}[{_WINDOW}]))"
