"""What a planner saw, expected, ordered and why, over run time: one picture of rows that share the time axis."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING, Any

from windtunnel.cockpit import palette
from windtunnel.cockpit.figures.planner_rows import Row, rows_of
from windtunnel.cockpit.picture import Offline
from windtunnel.lab.planner_log import planner_log
from windtunnel.lab.planner_score import planner_score

if TYPE_CHECKING:
    from windtunnel.lab.run import Run

GLASS = {"light": "rgba(255,255,255,0.7)", "dark": "rgba(17,20,24,0.7)"}
GAP_PX, HEAD_PX, FOOT_PX = 54, 70, 58


def planner_timeline(run: Run, theme: str = "light") -> Offline:
    """Demand against forecast, its error, replicas of each pool with floor, ceiling and budget, TTFT and TPOT against the SLO, and the
    reasons as a coloured strip that tells them on hover. Raises ConfigError without a planner, RunNotRecordedError if it was not recorded.
    """
    return Offline(*drawn(run, theme), sentences(run))


def sentences(run: Run) -> str:
    """The figure in words, with numbers."""
    log, score = planner_log(run), planner_score(run)
    text = f"{run.meta.name}: {len(log.ticks)} ticks of a {log.kind} planner, {score.ups} steps up, {score.downs} down;"
    text += f" it turned back {_times(score.flaps)} within 10 min of a move."
    if score.regret_gpu_hours is not None and score.perfect_gpu_hours:
        text += (f" {score.gpu_hours:.3g} GPU-hours; a perfect fleet for this demand would have used {score.perfect_gpu_hours:.3g}"
                 f" ({100 * (score.regret_share or 0.0):+.0f} %).")
    if score.wape is not None:
        text += f" Forecasts of the demand were off by {100 * score.wape:.0f} %."
    return text


def _times(n: int | None) -> str:
    return {0: "never", 1: "once"}.get(n or 0, f"{n} times")


def drawn(run: Run, theme: str = "light") -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(traces, layout) as plain plotly data."""
    rows = rows_of(run, theme)
    height = HEAD_PX + FOOT_PX + sum(row.height_px for row in rows) + GAP_PX * (len(rows) - 1)
    layout = _layout(run, theme, height)
    plot_px = height - HEAD_PX - FOOT_PX
    traces: list[dict[str, Any]] = []
    top = 0.0
    for i, row in enumerate(rows, 1):
        domain = (1 - (top + row.height_px) / plot_px, 1 - top / plot_px)
        top += row.height_px + GAP_PX
        _place(layout, row, i, domain, theme)
        number = "" if i == 1 else str(i)
        traces += [{**trace, "xaxis": "x", "yaxis": f"y{number}", "legend": f"legend{number}"} for trace in row.traces]
    layout["xaxis"] |= {"anchor": "free", "position": 0.0, "range": [0.0, run.tables.end_s]}
    layout.pop("_y")
    return traces, layout


def _layout(run: Run, theme: str, height: int) -> dict[str, Any]:
    layout = palette.layout(theme)
    y_axis = layout.pop("yaxis")
    layout.pop("legend")
    layout |= {"height": height, "hovermode": "closest", "margin": {"l": 84, "r": 24, "t": HEAD_PX, "b": FOOT_PX}, "shapes": [], "annotations": [],
               "barmode": "overlay", "bargap": 0.0, "_y": y_axis}
    layout["title"] = {"text": f"<b>Planner of {escape(run.meta.name)}</b>", "font": {"size": 15}, "x": 0, "xref": "paper", "y": 1,
                       "yref": "container", "yanchor": "top", "pad": {"t": 12}}
    layout["xaxis"] |= {"showspikes": True, "spikemode": "across", "spikesnap": "cursor", "spikethickness": 1, "spikedash": "dot",
                        "spikecolor": palette.TEXT[theme]}
    layout["xaxis"]["title"]["text"] = "run time, s"
    return layout


def _place(layout: dict[str, Any], row: Row, i: int, domain: tuple[float, float], theme: str) -> None:
    number = "" if i == 1 else str(i)
    axis = json.loads(json.dumps(layout["_y"])) | {"domain": [max(0.0, domain[0]), min(1.0, domain[1])], "anchor": "x"} | row.axis
    axis["title"] = {"text": row.unit, "font": {"size": 12}}
    layout[f"yaxis{number}"] = axis
    layout[f"legend{number}"] = {"orientation": "h", "x": 1, "xanchor": "right", "y": min(1.0, domain[1]), "yanchor": "bottom", "yref": "paper",
                                 "font": {"size": 11}, "bgcolor": "rgba(0,0,0,0)", "traceorder": "normal"}
    layout["annotations"].append({"text": f"<b>{row.title}</b>", "xref": "paper", "x": 0, "xanchor": "left", "yref": "paper",
                                  "y": min(1.0, domain[1]), "yanchor": "bottom", "yshift": 4, "showarrow": False, "font": {"size": 13}})
    for y, label in row.lines:
        layout["shapes"].append({"type": "line", "xref": "paper", "x0": 0, "x1": 1, "yref": f"y{number}", "y0": y, "y1": y, "layer": "above",
                                 "line": {"color": palette.TEXT[theme], "width": 1, "dash": "dot"}})
        layout["annotations"].append({"text": label, "xref": "paper", "x": 1, "xanchor": "right", "yref": f"y{number}", "y": y, "yanchor": "bottom",
                                      "showarrow": False, "font": {"size": 11}, "bgcolor": GLASS[theme], "borderpad": 0})

