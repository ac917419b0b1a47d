"""What arrived, what was admitted, what was good, what was turned away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from windtunnel.cockpit.cards import fmt
from windtunnel.cockpit.figures.spec import FigureSpec, Trace
from windtunnel.cockpit.figures.windowed import Windows, good_mask

if TYPE_CHECKING:
    from windtunnel.lab.run import Run


def build(run: Run, *, baseline: Run | None = None, slo: dict[str, Any] | None = None) -> FigureSpec:
    """Requests per second offered, admitted, good and turned away, by window."""
    w = Windows(run)
    rows = w.rows
    outcome = rows["outcome"].astype(str).to_numpy()
    everyone = outcome != ""
    rejected = outcome == "rate_limited"
    masks = {"offered": everyone, "admitted": rows["dispatched_s"].notna().to_numpy(), "good": good_mask(run, slo), "rejected": rejected}
    rates = {name: w.count(mask) for name, mask in masks.items()}
    traces = [Trace(name, w.starts, y, role=name) for name, y in rates.items()]
    if baseline is not None:
        b = Windows(baseline)
        traces.append(Trace("good (pinned)", b.starts, b.count(good_mask(baseline, slo)), role="good", dash="dash"))
    n, good, away = (int((mask & w.counted).sum()) for mask in (everyone, masks["good"], rejected))
    text = f"{n:,} requests offered; {fmt(good / max(1, n), 'share')} good, {fmt(away / max(1, n), 'share')} turned away for overload."
    return FigureSpec("load", f"Load ({w.width_s:g} s windows)", "requests, 1/s", tuple(traces), text,
                      table=pd.DataFrame({"t_s": w.starts, **rates}))
