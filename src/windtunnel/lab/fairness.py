"""Who got how much service: curves of weighted tokens per tenant, the gap between two tenants, and one number for evenness."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from windtunnel.errors import ConfigValueError


def service_curves(requests: pd.DataFrame, at_s: Sequence[float] | np.ndarray, *, w_in: float = 1.0, w_out: float = 2.0) -> pd.DataFrame:
    """Weighted tokens served to each tenant until each time.

    requests: a run's table; at_s: run seconds, ascending. Input tokens count when the request is dispatched, output tokens evenly from
    the first to the last. Rows = times (index `t_s`), columns = tenants. Requests without success count their input alone.
    """
    times = np.asarray(at_s, dtype=float)
    columns = {}
    for tenant, rows in requests.groupby("tenant", observed=True):
        sent = rows[rows["dispatched_s"].notna()]
        starts = np.sort(sent["dispatched_s"].to_numpy(float))
        order = np.argsort(sent["dispatched_s"].to_numpy(float), kind="stable")
        inputs = np.concatenate([[0.0], np.cumsum(sent["input_tokens"].fillna(0).to_numpy(float)[order])])
        done = sent[(sent["outcome"] == "success") & sent["first_token_s"].notna()]
        served = w_in * inputs[np.searchsorted(starts, times, side="right")]
        columns[str(tenant)] = served + w_out * _ramps(done, times)
    return pd.DataFrame(columns, index=pd.Index(times, name="t_s"))


def _ramps(done: pd.DataFrame, times: np.ndarray) -> np.ndarray:
    """Σ of ramps from 0 to the output tokens between first token and end: a piecewise linear sum, from its changes of slope."""
    first, last = done["first_token_s"].to_numpy(float), done["ended_s"].to_numpy(float)
    tokens = done["output_tokens"].to_numpy(float)
    wide = last > first
    slope = np.where(wide, tokens / np.where(wide, last - first, 1.0), 0.0)
    jumps = np.concatenate([first[~wide], [np.inf]])
    jump_sizes = np.concatenate([tokens[~wide], [0.0]])
    points = np.concatenate([first[wide], last[wide]])
    changes = np.concatenate([slope[wide], -slope[wide]])
    order = np.argsort(points, kind="stable")
    points, changes = points[order], changes[order]
    offsets = np.cumsum(changes * points)  # Σ slope·(t − point) = t·Σ slope − Σ slope·point
    slopes = np.cumsum(changes)
    n = np.searchsorted(points, times, side="right")
    total = np.where(n > 0, times * np.concatenate([[0.0], slopes])[n] - np.concatenate([[0.0], offsets])[n], 0.0)
    steps = np.argsort(jumps, kind="stable")
    summed = np.concatenate([[0.0], np.cumsum(jump_sizes[steps])])
    served: np.ndarray = total + summed[np.searchsorted(jumps[steps], times, side="right")]
    return served


def service_gap(curves: pd.DataFrame, first: str, second: str, *, weights: tuple[float, float] = (1.0, 1.0), since_s: float = 0.0) -> pd.Series:
    """|W_first/w_first - W_second/w_second| of what was served since `since_s`; index as the curves'."""
    for tenant in (first, second):
        if tenant not in curves:
            raise ConfigValueError("tenant", f"no tenant {tenant!r}; there are {', '.join(map(str, curves.columns))}")
    kept = curves[curves.index >= since_s]
    base = kept.iloc[0] if len(kept) else 0.0
    moved = kept - base
    gap: pd.Series = (moved[first] / weights[0] - moved[second] / weights[1]).abs()
    return gap.rename("gap_tokens")


def jain(shares: Sequence[float]) -> float:
    """Jain's index (Σx)²/(n·Σx²): 1 = all equal, 1/n = one has everything; NaN for none or all zero (Jain, Chiu, Hawe, DEC-TR-301, 1984)."""
    x = np.asarray(list(shares), dtype=float)
    squares = float((x * x).sum())
    return float(x.sum()) ** 2 / (len(x) * squares) if squares > 0 else float("nan")
