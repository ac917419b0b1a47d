"""The rows of the planner's picture: what each shows, as plain plotly traces."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from windtunnel.cockpit import palette
from windtunnel.cockpit.decimate import LIMIT, decimate
from windtunnel.cockpit.figures.planner_data import Forecasts, forecasts_of, ideal_fleet, pool_series
from windtunnel.cockpit.figures.spec import nice
from windtunnel.cockpit.figures.windowed import Windows, bounds_of
from windtunnel.lab.planner_explain import Stretch, plan_text, timeline
from windtunnel.lab.planner_log import PlannerLog, planner_log
from windtunnel.lab.planner_score import component_names, gpus_of

if TYPE_CHECKING:
    from windtunnel.lab.run import Run

# what a tick came to → (colour on light, on dark, its words in the legend)
STATES: dict[str, tuple[str, str, str]] = {
    "up": ("#00805F", "#2CC79B", "step up"),
    "down": ("#B0568C", "#E59CC4", "step down"),
    "steady": ("#C9D3DC", "#46505A", "right as it is"),
    "coming": ("#0072B2", "#56B4E9", "replicas coming"),
    "needed": ("#5B5BD6", "#A5A5FF", "needed after all"),
    "kept": ("#E69F00", "#E69F00", "held by a guard"),
    "blind": ("#D55E00", "#FF8A3D", "data missing"),
    "stopped": ("#1A1A1A", "#F2F2F2", "stopped"),
}
COMING = {"scaling_in_progress", "worker_count_mismatch", "startup_cancel_wait"}
NEEDED = {"scale_down_capped_by_throughput", "scale_down_refused_consolidation"}
BLIND = {"no_fpm_data", "insufficient_data", "no_traffic_data", "predict_failed", "model_not_ready", "partner_not_ready", "count_unknown",
         "circuit_open", "scaler_unknown", "not_started"}
STOPPED = {"rejected", "rejected_by_plugin", "tick_timeout", "no_targets", "scale_up_stuck", "refused"}
STEADY = {"unchanged", "no_change", "set_lower_bound", "scale", "held_over", "overridden", "unset"}


LATENCIES = (("ttft_s", "TTFT"), ("tpot_s", "TPOT"), ("e2e_s", "E2E"))


@dataclass(slots=True)
class Row:
    """One row. lines: (y, label) drawn dotted across; axis: settings of its y axis."""

    title: str
    unit: str
    traces: list[dict[str, Any]]
    lines: list[tuple[float, str]] = field(default_factory=list)
    height_px: int = 170
    axis: dict[str, Any] = field(default_factory=dict)


def state_of(s: Stretch) -> str:
    """The kind of a stretch, by its deciding reason."""
    if s.move and s.baseline is not None and s.planned is not None and "advisory" not in s.reasons:
        return "up" if s.planned > s.baseline else "down"
    words = set(s.reasons)
    for name, group in (("stopped", STOPPED), ("blind", BLIND), ("coming", COMING)):
        if words & group:
            return name
    if words <= STEADY:
        return "steady"
    return "needed" if words <= NEEDED | STEADY else "kept"


def rows_of(run: Run, theme: str) -> list[Row]:
    """Top to bottom; rows without data are left out."""
    log = planner_log(run)
    forecasts = forecasts_of(run, log)
    rows = [_demand(run, log, forecasts, theme)]
    if len(forecasts.error):
        rows.append(_errors(forecasts, theme))
    rows += [_pool(run, log, pool, theme) for pool in log.pools]
    if len(log.pools) > 1:
        rows.append(_gpus(log, theme))
    rows += [row for column, title in LATENCIES if (row := _latency(run, log, column, title, theme)) is not None]
    rows.append(_strip(run, log, theme))
    return rows


def _line(name: str, x: Any, y: Any, ink: str, unit: str, *, step: bool = False, dash: str = "solid", width: float = 2.0) -> dict[str, Any]:
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if not step:  # there are few counts, and stacked ones need the same times
        keep = decimate(y)
        x, y = x[keep], y[keep]
    return {"type": "scatter", "mode": "lines", "name": name, "x": _plain(x), "y": _plain(y), "connectgaps": False,
            "line": {"color": ink, "width": width, "dash": dash, "shape": "hv" if step else "linear"},
            "hovertemplate": f"{escape(name)} %{{y:.4g}} {unit} at %{{x:.4g}} s<extra></extra>"}


def _plain(values: np.ndarray) -> list[float | None]:
    return [None if v != v else float(f"{v:.6g}") for v in values.tolist()]


def _demand(run: Run, log: PlannerLog, forecasts: Forecasts, theme: str) -> Row:
    w = Windows(run)
    grey, amber = palette.colour("offered", theme), palette.colour("booting", theme)
    traces: list[dict[str, Any]] = []
    if len(forecasts.at) and forecasts.low is not None and forecasts.high is not None:
        edge = {"type": "scatter", "mode": "lines", "x": _plain(forecasts.at), "line": {"width": 0, "color": amber}, "hoverinfo": "skip"}
        traces += [{**edge, "y": _plain(forecasts.low), "showlegend": False},
                   {**edge, "y": _plain(forecasts.high), "fill": "tonexty", "fillcolor": _faint(amber), "name": "80 % band of its errors"}]
    traces.append(_line("demand", w.starts + w.width_s / 2, w.count(np.ones(len(w.rows), dtype=bool)), grey, "requests/s"))
    if len(forecasts.at):
        traces.append(_line("forecast for then", forecasts.at, forecasts.value, amber, "requests/s"))
    able = pool_series(log, run).able_rps
    if able is not None:
        traces.append(_line("what ready replicas can serve", *able, palette.colour("good", theme), "requests/s", step=True, dash="dot", width=1.5))
    horizon = f", made {forecasts.horizon_s:g} s ahead" if forecasts.horizon_s else ""
    return Row(f"Demand and forecast{horizon}" if len(forecasts.at) else "Demand", "requests/s", traces, height_px=200)


def _errors(forecasts: Forecasts, theme: str) -> Row:
    over, under = palette.colour("admitted", theme), palette.colour("rejected", theme)
    error = np.asarray(forecasts.error)
    bars = [{"type": "bar", "name": name, "x": _plain(forecasts.error_at[keep]), "y": _plain(error[keep]), "width": forecasts.window_s or None,
             "marker": {"color": ink, "line": {"width": 0}},
             "hovertemplate": "%{y:+.3g} requests/s around %{x:.4g} s<extra></extra>"}
            for name, ink, keep in (("more came than forecast", under, error >= 0), ("less came", over, error < 0))]
    return Row("Forecast error (demand − forecast)", "requests/s", bars, height_px=110, axis={"rangemode": "normal", "zeroline": True})


def _pool(run: Run, log: PlannerLog, pool: str, theme: str) -> Row:
    seen = pool_series(log, run).pools[pool].changes()
    blue, amber, ink = palette.colour("ready", theme), palette.colour("booting", theme), palette.colour("other", theme)
    ready = _line("ready", seen.at, seen.ready, blue, "replicas", step=True)
    starting = _line("starting", seen.at, seen.starting, amber, "replicas", step=True)
    traces = [_stacked(ready, blue), _stacked(starting, amber),
              _line("planned", seen.at, seen.planned, ink, "replicas", step=True)]
    ideal = ideal_fleet(run, log, pool)
    if ideal is not None:
        traces.append(_line("perfect fleet", *ideal, palette.colour("good", theme), "replicas", step=True, dash="dot", width=1.5))
    top = max([1.0, *(np.nanmax(values) for values in (seen.ready + seen.starting, seen.planned) if len(values) and not np.isnan(values).all())])
    lines = bounds_of_pool(log, pool)
    top = max([top, *(y for y, label in lines if not label.startswith("floor"))])
    return Row(f"Replicas: {escape(pool)}", "replicas", traces, lines, height_px=180, axis=_whole(top * 1.15))


def bounds_of_pool(log: PlannerLog, pool: str) -> list[tuple[float, str]]:
    """Floor, ceiling and, of an only pool, the GPU budget; (replicas, label)."""
    names = {component: role for role, component in component_names(log).items()}
    settings = (log.settings.get("pools") or {}).get(names.get(pool, pool)) or log.settings
    out: dict[float, list[str]] = {}
    if settings.get("min_replicas") is not None:
        out.setdefault(float(settings["min_replicas"]), []).append("floor")
    if settings.get("max_replicas") is not None:
        out.setdefault(float(settings["max_replicas"]), []).append("ceiling")
    budget = (log.settings.get("budget") or {}).get("max_gpus", -1)
    if budget >= 0 and len(log.pools) == 1:
        gpus = gpus_of(log).get(pool, 1)
        out.setdefault(float(budget // gpus), []).append(f"budget of {budget} GPUs")
    return [(y, f"{' and '.join(words)} {y:g}" if "budget" not in words[-1] else " and ".join(words)) for y, words in out.items() if y > 0]


def _gpus(log: PlannerLog, theme: str) -> Row:
    series, gpus = pool_series(log), gpus_of(log)
    traces = []
    total = 0.0
    for i, (pool, seen) in enumerate(series.pools.items()):
        ink = palette.series_colour(i, theme)
        used = np.nan_to_num(seen.ready + seen.starting) * gpus.get(pool, 1)
        total = total + used
        line = _line(escape(pool), seen.at, used, ink, "GPUs", step=True)
        traces.append(_stacked(line, ink))
    budget = (log.settings.get("budget") or {}).get("max_gpus", -1)
    top = max(float(np.max(total)) if np.size(total) else 0.0, budget, 1.0)
    return Row("GPUs of all pools", "GPUs", traces, [(float(budget), f"budget {budget} GPUs")] if budget >= 0 else [], height_px=140,
               axis=_whole(top * 1.18))


def _latency(run: Run, log: PlannerLog, column: str, title: str, theme: str) -> Row | None:
    w = Windows(run)
    lines = {name: w.percentile(column, p) for name, p in (("p50", 50.0), ("p99", 99.0))}
    if not any(np.nanmax(y, initial=0.0) > 0 for y in lines.values()):
        return None  # stations tell no tokens
    x = w.starts + w.width_s / 2
    traces = [_line(name, x, y, palette.colour(name, theme), "s") for name, y in lines.items()]
    bound = bounds_of(run, None).get(column)
    if bound is None and column == "e2e_s":
        return None
    if bound is None:
        told = (log.settings.get("slo") or {}).get("ttft_ms" if column == "ttft_s" else "itl_ms")
        bound = told / 1000 if told is not None else None
    most = max(float(np.nanmax(y, initial=0.0)) for y in lines.values())
    top = max(most, bound or 0.0) * 1.15
    return Row(f"{title} by window of arrival", f"{title}, s", traces, [(bound, f"SLO {bound:g} s")] if bound is not None else [], height_px=140,
               axis={"range": [0, top]})


def _strip(run: Run, log: PlannerLog, theme: str) -> Row:
    """One bar per stretch; hovering tells the ticks, the count and the reason."""
    bars: dict[str, dict[str, list[Any]]] = {name: {"base": [], "x": [], "y": [], "text": []} for name in STATES}
    step_s = float((log.settings.get("resolved") or {}).get("scale_interval_s") or log.settings.get("interval_s") or _spacing(log))
    for s in _few(timeline(log)):
        into = bars[state_of(s)]
        into["base"].append(float(f"{s.from_s:.9g}"))
        into["x"].append(float(f"{max(min(s.to_s + step_s, run.tables.end_s) - s.from_s, step_s / 4):.6g}"))
        into["y"].append(escape(s.pool))
        ticks = f"tick {s.first}" if s.first == s.last else f"ticks {s.first}–{s.last}"
        into["text"].append(f"{ticks}, {s.from_s:g}–{s.to_s:g} s: <b>{plan_text(s)}</b><br>{'<br>'.join(escape(s.why).split('; '))}")
    traces = [{"type": "bar", "orientation": "h", "name": STATES[name][2], "marker": {"color": STATES[name][theme == "dark"], "line": {"width": 0}},
               "hovertemplate": "%{text}<extra></extra>", "textposition": "none", "width": 0.8, **data} for name, data in bars.items() if data["x"]]
    return Row("Why (hover)", "", traces, height_px=44 + 34 * max(1, len(log.pools)), axis={"type": "category", "showgrid": False})


def _few(stretches: list[Stretch]) -> list[Stretch]:
    """Of a long run, neighbours of one pool that came to the same are one bar, which tells the reason of the first."""
    if len(stretches) <= LIMIT:
        return stretches
    out: list[Stretch] = []
    newest: dict[str, int] = {}  # pool → where its last bar is
    for s in stretches:
        i = newest.get(s.pool)
        if i is not None and state_of(out[i]) == state_of(s) and not s.move:
            why = out[i].why
            out[i] = replace(out[i], last=s.last, to_s=s.to_s, why=why if why.endswith(s.why) else f"{why.removesuffix('; and others')}; and others")
        else:
            newest[s.pool] = len(out)
            out.append(s)
    return out


def _spacing(log: PlannerLog) -> float:
    at = [t["tick_at"] for t in log.ticks]
    return min((b - a for a, b in pairwise(at)), default=1.0)


def _whole(top: float) -> dict[str, Any]:
    """An axis of whole numbers from 0."""
    return {"range": [0, top], "tick0": 0, "dtick": max(1, int(nice(top / 5)))}


def _stacked(line: dict[str, Any], ink: str) -> dict[str, Any]:
    return {**line, "stackgroup": "stack", "line": {**line["line"], "width": 0.5}, "fillcolor": _faint(ink)}


def _faint(ink: str) -> str:
    r, g, b = (int(ink[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({r},{g},{b},0.28)"
