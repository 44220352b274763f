"""The dashboards, `forwardpass/dashboards/*.json` for Grafana 11 and later: `python helm/dashboards.py` writes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models import prometheus as prometheus_models
from panels import BOARDS, DURATION, Ask, Board, Panel

FOLDER = Path(__file__).with_name("forwardpass") / "dashboards"
DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")

_WIDTH, _HEIGHT = 12, 8
"""Two panels in a row of 24."""
_OF_INTERVALS = ("auto", "auto_count", "auto_min", "id")
"""What the builder writes of every variable, and Grafana 11's schema has of none of these; so it is with `style`, and
with the tooltip of a heatmap (`make dashboards-types`)."""
_SCHEMA = 39
"""Grafana 11's. The builder writes an older number over what is the same."""


def _target(panel: Panel, ask: Ask, number: int) -> Any:
    query = prometheus.Dataquery().expr(ask.expr).legend_format(ask.legend or "__auto").ref_id(chr(ord("A") + number))
    query.datasource(DATASOURCE)
    if panel.kind == "heatmap":
        query.format(prometheus_models.PromQueryFormat.HEATMAP)
    elif panel.kind == "table":
        query.format(prometheus_models.PromQueryFormat.TABLE).instant()
    elif DURATION in ask.expr:
        query.exemplar(True)
    return query


def _panel(panel: Panel) -> Any:
    if panel.kind == "heatmap":
        made: Any = heatmap.Panel().calculate(False).y_axis(heatmap.YAxisConfig().unit(panel.unit))
        made.color(heatmap.HeatmapColorOptions().mode(heatmap_models.HeatmapColorMode.SCHEME).scheme("Blues").steps(32))
    elif panel.kind == "number":
        made = stat.Panel().unit(panel.unit).text_mode(common_models.BigValueTextMode.VALUE_AND_NAME)
    elif panel.kind == "table":
        made = table.Panel().unit(panel.unit).show_header(True)
    else:
        made = (
            timeseries.Panel().unit(panel.unit).min(0).line_width(1).fill_opacity(30 if panel.kind == "stacked" else 5)
        )
        made.legend(common.VizLegendOptions().show_legend(True).display_mode(common_models.LegendDisplayMode.LIST))
        if panel.kind == "stacked":
            made.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    made.title(panel.title).description(panel.says).datasource(DATASOURCE).span(_WIDTH).height(_HEIGHT)
    for number, ask in enumerate(panel.asks):
        made.with_target(_target(panel, ask, number))
    return made


def _choice(name: str, label: str, query: str, everything: str = "") -> Any:
    """`everything`: what all of them are asked for by; empty: by their names."""
    made = build.QueryVariable(name).label(label).datasource(DATASOURCE).query(query).multi(True).include_all(True)
    made.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    return made.all_value(everything) if everything else made


def document(board: Board) -> str:
    """The dashboard as Grafana reads it."""
    made = (
        build.Dashboard(board.title)
        .uid(board.uid)
        .tags(["forwardpass"])
        .refresh("30s")
        .time("now-1h", "now")
        .with_variable(build.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(_choice("job", "job", "label_values(forwardpass_ready, job)"))
        .with_variable(_choice("model", "model", 'label_values(forwardpass_saturation{job=~"$job"}, model)', ".*"))
        .with_variable(_choice("triton", "Tritons' job", "label_values(nv_cpu_memory_total_bytes, job)"))
        .with_variable(build.ConstantVariable("objective").value("0.1"))
    )
    for number, panel in enumerate(board.panels, 1):
        made.with_panel(_panel(panel).id(number))
    written = json.loads(JSONEncoder().encode(made.build()))
    del written["style"]
    for variable in written["templating"]["list"]:
        for field in _OF_INTERVALS:
            del variable[field]
    for panel in written["panels"]:
        if panel["type"] == "heatmap":
            panel["options"]["tooltip"] = {"mode": "single", "yHistogram": False}
    return json.dumps({**written, "schemaVersion": _SCHEMA}, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    for board in BOARDS:
        (FOLDER / f"{board.uid}.json").write_text(document(board))
    return 0


if __name__ == "__main__":
    sys.exit(main())
