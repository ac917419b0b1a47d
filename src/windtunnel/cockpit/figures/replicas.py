"""How many replicas were ready, booting or draining."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from windtunnel.cockpit.figures.spec import FigureSpec, Trace
from windtunnel.cockpit.figures.windowed import series_of

if TYPE_CHECKING:
    from windtunnel.lab.run import Run


def build(run: Run, *, baseline: Run | None = None, slo: dict[str, Any] | None = None) -> FigureSpec:
    """Replicas ready, booting and draining over time, all pools together."""
    traces: list[Trace] = []
    table: dict[str, np.ndarray] = {}
    for state in ("ready", "booting", "draining"):
        pools = series_of(run, f"replicas_{state}")
        if not pools:
            continue
        t = next(iter(pools.values()))[0]
        total = np.sum([np.interp(t, tt, yy) for tt, yy in pools.values()], axis=0)
        if state == "ready" or total.any():
            traces.append(Trace(state, t, total, role=state, step=True))
            table |= {"t_s": t, state: total}
    if baseline is not None:
        pools = series_of(baseline, "replicas_ready")
        if pools:
            t = next(iter(pools.values()))[0]
            total = np.sum([np.interp(t, a, b) for a, b in pools.values()], axis=0)
            traces.append(Trace("ready (pinned)", t, total, role="ready", step=True, dash="dash"))
    ready = table.get("ready")
    if ready is None:
        text = "No data: the run has no series of replicas."
    elif ready.min() == ready.max():
        text = f"{ready.max():.0f} replica{'' if ready.max() == 1 else 's'} ready throughout."
    else:
        text = f"Between {ready.min():.0f} and {ready.max():.0f} replicas ready, {ready.mean():.1f} on average."
    return FigureSpec("replicas", "Replicas", "replicas", tuple(traces), text, counts=True, table=pd.DataFrame(table))
