"""Distributions of TTFT and E2E over successes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from windtunnel.cockpit.figures.spec import FigureSpec, Trace

if TYPE_CHECKING:
    from windtunnel.lab.run import Run


def _first_tokens(run: Run) -> int:
    rows = run.requests
    return int((rows["ttft_s"].notna() & ~rows["marked"].fillna(False).astype(bool)).sum())


def build(run: Run, *, baseline: Run | None = None, slo: dict[str, Any] | None = None) -> FigureSpec:
    """Share of successes whose TTFT and E2E are at most x seconds."""
    traces: list[Trace] = []
    for source, suffix, dash in ((run, "", "solid"), (baseline, " (pinned)", "dash")):
        if source is None:
            continue
        for column, label, role in (("ttft_s", "TTFT", "p50"), ("e2e_s", "E2E", "p99")):
            counted = source.requests[~source.requests["marked"].fillna(False).astype(bool)]
            values = np.sort(pd.to_numeric(counted[column], errors="coerce").dropna().to_numpy(dtype=float))
            if len(values):
                traces.append(Trace(label + suffix, np.maximum(values, 1e-4), np.arange(1, len(values) + 1) / len(values), role=role, dash=dash))
    text = f"{_first_tokens(run):,} requests had a first token." if len(run.requests) else "No data: nothing arrived."
    return FigureSpec("latency_cdf", "Latency distribution", "share of successes", tuple(traces), text, x_title="seconds (log scale)",
                      log_x=True, y_range=(0.0, 1.02))
