"""Requests waiting in control, and time spent there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from windtunnel.cockpit.figures.spec import FigureSpec, Trace
from windtunnel.cockpit.figures.windowed import series_of

if TYPE_CHECKING:
    from windtunnel.lab.run import Run


def build(run: Run, *, baseline: Run | None = None, slo: dict[str, Any] | None = None) -> FigureSpec:
    """Requests waiting in each lane over time."""
    lanes = series_of(run, "waiting")
    traces = [Trace(key, t, y, group=i, step=True, stack=len(lanes) > 1) for i, (key, (t, y)) in enumerate(lanes.items())]
    if baseline is not None:
        pinned = series_of(baseline, "waiting")
        traces += [Trace(f"{key} (pinned)", t, y, group=i, step=True, dash="dash") for i, (key, (t, y)) in enumerate(pinned.items())]
    waits = pd.to_numeric(run.requests["control_queue_s"], errors="coerce").dropna()
    longest = max((float(y.max(initial=0)) for _, y in lanes.values()), default=0.0)
    text = f"At most {longest:.0f} requests waited at once." if lanes else "No data: the run has no series of the queue."
    if lanes and not longest and not waits.any():
        text = "Nobody waited."
    elif len(waits):
        text += f" Dispatched requests had waited {waits.mean():.3g} s on average."
    table = pd.DataFrame({"t_s": next(iter(lanes.values()))[0], **{k: y for k, (_, y) in lanes.items()}}) if lanes else pd.DataFrame()
    return FigureSpec("queue", "Queue", "requests waiting", tuple(traces), text, table=table, counts=True)
