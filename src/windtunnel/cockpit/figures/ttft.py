"""Time to first token over the run, against its bound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from windtunnel.cockpit.cards import fmt
from windtunnel.cockpit.figures.spec import FigureSpec, Trace
from windtunnel.cockpit.figures.windowed import Windows, bounds_of, clock

if TYPE_CHECKING:
    from windtunnel.lab.run import Run

PERCENTILES = (("p50", 50.0), ("p95", 95.0), ("p99", 99.0))


def percentile_figure(run: Run, baseline: Run | None, slo: dict[str, Any] | None, *, name: str, column: str, title: str, unit: str) -> FigureSpec:
    """p50, p95 and p99 of a latency column by window of arrival; a window with fewer than 5 requests is a gap."""
    w = Windows(run)
    lines = {label: w.percentile(column, p) for label, p in PERCENTILES}
    traces = [Trace(label, w.starts, y, role=label) for label, y in lines.items()]
    if baseline is not None:
        b = Windows(baseline)
        traces.append(Trace("p99 (pinned)", b.starts, b.percentile(column, 99.0), role="p99", dash="dash"))
    values = pd.to_numeric(w.rows[column][w.counted], errors="coerce").dropna().to_numpy(dtype=float)
    bound = bounds_of(run, slo).get(column)
    marks = ((bound, f"SLO {bound:g} s"),) if bound is not None else ()
    return FigureSpec(name, f"{title} ({w.width_s:g} s windows)", unit, tuple(traces), _sentence(title, values, lines["p99"], w, bound),
                      lines=marks, table=pd.DataFrame({"t_s": w.starts, **lines}))


def _sentence(title: str, values: np.ndarray, p99: np.ndarray, w: Windows, bound: float | None) -> str:
    if not len(values):
        return "No data: no request has this time."
    text = f"{title} p50 {fmt(float(np.percentile(values, 50)), 's')}, p99 {fmt(float(np.percentile(values, 99)), 's')} over the run"
    known = ~np.isnan(p99) & w.settled
    if bound is None or not known.any():
        return text + "."
    over = known & (p99 > bound)
    if not over.any():
        return f"{text}; the windows' p99 stays within the SLO of {bound:g} s throughout."
    worst = int(np.nanargmax(np.where(known, p99, np.nan)))
    return (f"{text}; p99 above the SLO of {bound:g} s in {int(over.sum())} of {int(known.sum())} windows, "
            f"worst {fmt(float(p99[worst]), 's')} at {clock(float(w.starts[worst]))}.")


def build(run: Run, *, baseline: Run | None = None, slo: dict[str, Any] | None = None) -> FigureSpec:
    """Percentiles of the time to first token, s, by window."""
    return percentile_figure(run, baseline, slo, name="ttft", column="ttft_s", title="TTFT", unit="time to first token, s")
