"""The concurrency limit and what it let through: the saw-tooth of AIMD."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from windtunnel.cockpit.figures.spec import FigureSpec, Trace
from windtunnel.cockpit.figures.windowed import series_of

if TYPE_CHECKING:
    from windtunnel.lab.run import Run

UNLIMITED = 1 << 29  # a limit this high is none: drawing it would flatten everything else
LANES_SHOWN = 4


def build(run: Run, *, baseline: Run | None = None, slo: dict[str, Any] | None = None) -> FigureSpec:
    """In flight, waiting and the limit of each lane over time."""
    limits, flying, waiting = (series_of(run, name) for name in ("limit", "in_flight", "waiting"))
    traces: list[Trace] = []
    cuts, lowest, highest = 0, np.inf, -np.inf
    for key, (t, y) in list(limits.items())[:LANES_SHOWN]:
        suffix = f" {key}" if len(limits) > 1 else ""
        if key in flying:
            traces.append(Trace(f"in flight{suffix}", *flying[key], role="admitted", step=True))
        if y.max(initial=0) < UNLIMITED:
            traces.append(Trace(f"limit{suffix}", t, y, role="limit", step=True))
            cuts += int((np.diff(y) < 0).sum())
            lowest, highest = min(lowest, y.min()), max(highest, y.max())
        if key in waiting:
            traces.append(Trace(f"waiting{suffix}", *waiting[key], role="p95", step=True, dash="dot"))
    if baseline is not None:
        for key, (t, y) in list(series_of(baseline, "limit").items())[:1]:
            if y.max(initial=0) < UNLIMITED:
                traces.append(Trace(f"limit {key} (pinned)", t, y, role="limit", step=True, dash="dash"))
    if not limits:
        text = "No data: the run has no series of the limit."
    elif np.isinf(lowest):
        text = "No concurrency limit: everything that arrives is dispatched at once."
    elif lowest == highest:
        text = f"The limit stayed at {highest:.0f} requests in flight."
    else:
        text = f"The limit moved between {lowest:.0f} and {highest:.0f} requests in flight, with {cuts} cuts seen on the sampling grid."
    return FigureSpec("limit", "Concurrency limit", "requests", tuple(traces), text,
                      table=pd.DataFrame({"t_s": t, "limit": y}) if limits else pd.DataFrame())
