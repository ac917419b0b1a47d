"""The share of offered requests that were good, by window and so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from windtunnel.cockpit.cards import fmt
from windtunnel.cockpit.figures.spec import FigureSpec, Trace
from windtunnel.cockpit.figures.windowed import FEW, Windows, good_mask

if TYPE_CHECKING:
    from windtunnel.lab.run import Run


def shares(run: Run, slo: dict[str, Any] | None) -> tuple[Windows, np.ndarray, np.ndarray]:
    """Windows, good share per window (NaN below 5 requests), cumulative good share of what counts (NaN before that begins)."""
    w = Windows(run)
    mask = good_mask(run, slo)
    good, offered, good_counted, counted = (np.bincount(w.index[m], minlength=w.n).astype(float)
                                            for m in (mask, np.ones(len(mask), bool), mask & w.counted, w.counted))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(offered >= FEW, good / offered, np.nan)
        so_far = np.cumsum(good_counted) / np.cumsum(counted)
    return w, share, so_far


def build(run: Run, *, baseline: Run | None = None, slo: dict[str, Any] | None = None) -> FigureSpec:
    """Share of offered requests that met every objective, by window and so far."""
    w, share, so_far = shares(run, slo)
    traces = [Trace("good share", w.starts, share, role="good"), Trace("so far", w.starts, so_far, role="other", dash="dot")]
    text = f"{fmt(so_far[-1], 'share')} of all offered requests were good." if w.counted.any() else "No data: nothing arrived."
    if baseline is not None:
        b, b_share, b_so_far = shares(baseline, slo)
        traces.append(Trace("good share (pinned)", b.starts, b_share, role="good", dash="dash"))
        if w.counted.any() and b.counted.any():
            text += f" The pinned run had {fmt(b_so_far[-1], 'share')}."
    return FigureSpec("goodput", f"Goodput ({w.width_s:g} s windows)", "share of offered requests", tuple(traces), text, y_range=(0.0, 1.02),
                      table=pd.DataFrame({"t_s": w.starts, "good": share, "so_far": so_far}))
