"""What several figures share: rows of a run cut into equal windows by arrival, and series by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from windtunnel.cockpit.figures.spec import windows

if TYPE_CHECKING:
    from windtunnel.lab.run import Run

FEW = 5  # a window with fewer requests says nothing about percentiles


def span_s(run: Run) -> float:
    """Last arrival or end of a run, s."""
    r = run.requests
    last = pd.concat([r["arrived_s"], r["ended_s"]]).max() if len(r) else 0.0
    return float(last) if pd.notna(last) else 0.0


class Windows:
    """Equal windows over a run; `starts` (s), `width_s`, and per-request window numbers.

    counted: the requests that numbers are made of, those of warm-up and cool-down are drawn only; settled: the windows that have some.
    """

    def __init__(self, run: Run) -> None:
        self.rows = run.requests
        self.width_s = windows(span_s(run))
        arrived = self.rows["arrived_s"].to_numpy(dtype=float)
        self.n = int(arrived.max() // self.width_s) + 1 if len(arrived) else 0
        self.index = (arrived // self.width_s).astype(int) if len(arrived) else np.array([], int)
        self.starts = np.arange(self.n) * self.width_s
        self.counted = ~self.rows["marked"].fillna(False).to_numpy(dtype=bool)
        self.settled = np.bincount(self.index[self.counted], minlength=self.n) > 0

    def count(self, mask: np.ndarray) -> np.ndarray:
        """Requests in `mask` per second, by window."""
        return np.bincount(self.index[mask], minlength=self.n) / self.width_s

    def percentile(self, column: str, p: float) -> np.ndarray:
        """The p-th percentile of a column by window; NaN where fewer than 5 values are known."""
        values = pd.to_numeric(self.rows[column], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
        out = np.full(self.n, np.nan)
        known = ~np.isnan(values)
        index, values = self.index[known], values[known]
        order = np.argsort(index, kind="stable")
        index, values = index[order], values[order]
        edges = np.searchsorted(index, np.arange(self.n + 1))
        for w in range(self.n):
            part = values[edges[w] : edges[w + 1]]
            if len(part) >= FEW:
                out[w] = np.percentile(part, p)
        return out


def series_of(run: Run, name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(times, values) of a series by key."""
    s = run.series
    s = s[s["name"] == name]
    return {str(key): (g["t_s"].to_numpy(float), g["value"].to_numpy(float)) for key, g in s.groupby("key", observed=True, sort=True)}


def bounds_of(run: Run, slo: Mapping[str, Any] | None) -> dict[str, float]:
    """Flat SLO bounds (s), those of interactive requests where the SLO is per class."""
    given = dict(slo if slo is not None else (run.meta.slo or {}))
    for cls in ("interactive", "batch"):
        if isinstance(given.get(cls), Mapping):
            return {k: float(v) for k, v in given[cls].items() if v is not None}
    return {k: float(v) for k, v in given.items() if k.endswith("_s") and v is not None}


def good_mask(run: Run, slo: Mapping[str, Any] | None) -> np.ndarray:
    """Requests that succeeded within every bound; a bound whose value is unknown is missed, except TPOT of a one-token reply."""
    rows = run.requests
    good = (rows["outcome"].astype(str) == "success").to_numpy(copy=True)
    for column, bound in bounds_of(run, slo).items():
        if column not in rows:
            continue
        values = pd.to_numeric(rows[column], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
        ok = values <= bound
        if column == "tpot_s":
            ok |= np.isnan(values) & (rows["output_tokens"].fillna(0).to_numpy(dtype=float) < 2)
        good &= np.asarray(ok, dtype=bool)
    return np.asarray(good)


def clock(t_s: float) -> str:
    """`40 s`, or `7 min 40 s` above two minutes."""
    return f"{t_s:.0f} s" if t_s < 120 else f"{int(t_s // 60)} min {int(t_s % 60):02d} s"
