"""What a fleet cost, minute by minute."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from windtunnel.lab.run import Run

MINUTE_S = 60.0


def cost_by_minute(run: Run) -> pd.DataFrame:
    """One row per pool and run minute: pool, t_s (its start, run s), gpu_seconds, usd (NaN without a price).

    A replica costs from provisioning until it is gone, draining included; the columns sum to those of the `replicas` table.
    """
    lives = run.replicas
    pools = sorted(lives["pool"].astype(str).unique())
    edges = np.arange(0.0, max(run.tables.end_s, 1e-9) + MINUTE_S, MINUTE_S)
    parts = []
    for pool in pools:
        of = lives[lives["pool"] == pool]
        gone = of["gone_s"].fillna(run.tables.end_s).to_numpy(dtype="f8")
        gpus, seconds = of["gpus"].to_numpy(dtype="f8"), of["gpu_seconds"].fillna(0.0).to_numpy(dtype="f8")
        rates = of["usd"].to_numpy(dtype="f8") / np.where(seconds > 0, seconds, np.nan)
        since = gone - seconds / gpus
        inside = np.clip(np.minimum(gone, edges[1:, None]) - np.maximum(since, edges[:-1, None]), 0.0, None) * gpus
        priced = of["usd"].notna().all()
        usd = np.nansum(inside * np.nan_to_num(rates), axis=1) if priced else np.full(len(edges) - 1, np.nan)
        parts.append(pd.DataFrame({"pool": pool, "t_s": edges[:-1], "gpu_seconds": inside.sum(axis=1), "usd": usd}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["pool", "t_s", "gpu_seconds", "usd"])
