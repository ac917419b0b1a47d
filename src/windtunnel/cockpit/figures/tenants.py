"""Who got what: good share and TTFT by tenant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from windtunnel.cockpit.cards import fmt
from windtunnel.cockpit.figures.spec import FigureSpec, Trace
from windtunnel.cockpit.figures.windowed import Windows, good_mask

if TYPE_CHECKING:
    from windtunnel.lab.run import Run

SHOWN = 7


def build(run: Run, *, baseline: Run | None = None, slo: dict[str, Any] | None = None) -> FigureSpec:
    """Good share of each of the largest tenants, by window."""
    w = Windows(run)
    tenants = w.rows["tenant"].astype(str)
    good = good_mask(run, slo)
    top = tenants.value_counts().index[:SHOWN]
    traces, table = [], []
    for i, tenant in enumerate(sorted(top)):
        mine = (tenants == tenant).to_numpy()
        offered, got = np.bincount(w.index[mine], minlength=w.n), np.bincount(w.index[mine & good], minlength=w.n)
        with np.errstate(invalid="ignore", divide="ignore"):
            traces.append(Trace(tenant, w.starts, np.where(offered > 0, got / offered, np.nan), group=i))
        counted = mine & w.counted
        table.append({"tenant": tenant, "offered": int(counted.sum()), "good_fraction": float((counted & good).sum() / max(1, counted.sum()))})
    text = "; ".join(f"{row['tenant']}: {fmt(row['good_fraction'], 'share')} of {row['offered']:,} good" for row in table) + "."
    return FigureSpec("tenants", f"Good share by tenant ({w.width_s:g} s windows)", "share of offered requests", tuple(traces),
                      text if table else "No data.", y_range=(0.0, 1.02), table=pd.DataFrame(table))
