"""What the panels of all boards share: their size, units, data source and legends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana_foundation_sdk.builders.common import (
    ReduceDataOptions,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    ThresholdsConfig,
)
from grafana_foundation_sdk.builders.heatmap import HeatmapColorOptions, YAxisConfig
from grafana_foundation_sdk.builders.heatmap import Panel as Heatmap
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.timeseries import Panel as TimeSeries
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    DataSourceRef,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PROMETHEUS", "empty_board", "graph", "heatmap", "number"]

PROMETHEUS = DataSourceRef(type_val="prometheus", uid="${prometheus}")
_TAG = "pharos"
_HALF = 12
_SIXTH = 4


def empty_board(uid: str, title: str, description: str) -> Dashboard:
    """Return a board without panels, with its variables and the links to the other boards."""
    source = DatasourceVariable("prometheus").label("Prometheus").type("prometheus")
    instance = (
        QueryVariable("instance")
        .label("Server")
        .datasource(PROMETHEUS)
        .query("label_values(pharos_engine_up, instance)")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(multi=True)
        .include_all(include_all=True)
        .all_value(".*")
        .current(VariableOption(text="All", value="$__all"))
    )
    links = (
        DashboardLink("Pharos")
        .type(DashboardLinkType.DASHBOARDS)
        .tags([_TAG])
        .as_dropdown(as_dropdown=True)
        .keep_time(keep_time=True)
        .include_vars(include_vars=True)
    )
    return (
        Dashboard(f"Pharos: {title}")
        .uid(f"pharos-{uid}")
        .description(description)
        .tags([_TAG])
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(source)
        .with_variable(instance)
        .link(links)
    )


def _queries(queries: Sequence[tuple[str, str]], *, exemplars: bool) -> list[Dataquery]:
    return [
        Dataquery()
        .expr(query)
        .legend_format(legend)
        .ref_id(chr(ord("A") + place))
        .exemplar(exemplar=exemplars and place == 0)
        .range()
        for place, (query, legend) in enumerate(queries)
    ]


def graph(
    title: str,
    description: str,
    *queries: tuple[str, str],
    unit: str = "short",
    exemplars: bool = False,
    top: float | None = None,
    width: int = _HALF,
) -> TimeSeries:
    """Return lines over time.

    Args:
        title: Of the panel.
        description: Where the figure comes from, in a sentence.
        queries: PromQL and its legend.
        unit: Of Grafana's.
        exemplars: Whether the first query shows single requests as points that lead to traces.
        top: The scale's end, where there is one.
        width: In Grafana's 24ths.
    """
    panel = (
        TimeSeries()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .targets([*_queries(queries, exemplars=exemplars)])
        .unit(unit)
        .min(0)
        .height(8)
        .span(width)
        .fill_opacity(10)
        .show_points(VisibilityMode.NEVER)
        .legend(
            VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(show_legend=True)
        )
        .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    )
    return panel if top is None else panel.max(top)


def number(
    title: str,
    description: str,
    query: str,
    *,
    unit: str = "short",
    steps: Sequence[tuple[float | None, str]] = ((None, "green"),),
    width: int = _SIXTH,
) -> Stat:
    """Return one figure, with its course behind it; ``steps`` say from which value on which color."""
    return (
        Stat()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .targets([*_queries([(query, title)], exemplars=False)])
        .unit(unit)
        .height(4)
        .span(width)
        .color_mode(BigValueColorMode.VALUE)
        .graph_mode(BigValueGraphMode.AREA)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(
            ThresholdsConfig()
            .mode(ThresholdsMode.ABSOLUTE)
            .steps([Threshold(value=value, color=color) for value, color in steps])
        )
    )


def heatmap(title: str, description: str, query: str, *, unit: str = "s") -> Heatmap:
    """Return how values are spread over a histogram's buckets."""
    (target,) = _queries([(query, "{{le}}")], exemplars=False)
    return (
        Heatmap()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .targets([target.format(PromQueryFormat.HEATMAP)])
        .height(8)
        .span(_HALF)
        .calculate(calculate=False)
        .y_axis(YAxisConfig().unit(unit))
        .color(HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64))
    )
