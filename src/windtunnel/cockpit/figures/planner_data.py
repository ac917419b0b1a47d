"""Numbers behind the planner's picture: forecasts and how far they were off, counts of each pool over time, the perfect fleet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from windtunnel.cockpit.figures.spec import nice
from windtunnel.lab.planner_log import PlannerLog
from windtunnel.lab.planner_score import WINDOW_S, capacity_of
from windtunnel.policy.planning.reference import perfect_fleet

if TYPE_CHECKING:
    from windtunnel.lab.run import Run

Series = tuple[np.ndarray, np.ndarray]
FEW = 8  # fewer errors tell no band


@dataclass(frozen=True, slots=True)
class Forecasts:
    """at: middle of the window that was forecast; value, low, high: requests/s, the band None if too few windows have closed.

    error: demand − forecast of the windows that the run has seen whole, at error_at.
    """

    at: np.ndarray
    value: np.ndarray
    error_at: np.ndarray
    error: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None
    horizon_s: float | None
    window_s: float | None


def forecasts_of(run: Run, log: PlannerLog) -> Forecasts:
    """Every forecast of the demand that the run's planner made. The band: value plus the 10 % and 90 % quantiles of all errors of the run."""
    made = [(t["tick_at"], t["forecast"]) for t in log.ticks if t["forecast"].get("rps") is not None and t["forecast"].get("horizon_s") is not None]
    ends = np.array([at + f["horizon_s"] for at, f in made])
    widths = np.array([f["window_s"] for _, f in made])
    value = np.array([f["rps"] for _, f in made])
    order = np.argsort(ends, kind="stable")
    ends, widths, value = ends[order], widths[order], value[order]
    seen = np.sort(run.requests["arrived_s"].dropna().to_numpy(dtype=float))
    whole = ends <= run.tables.end_s
    came = (np.searchsorted(seen, ends, side="right") - np.searchsorted(seen, ends - widths, side="right")) / np.maximum(widths, 1e-9)
    error = (came - value)[whole] if len(ends) else np.empty(0)
    low = high = None
    if len(error) >= FEW:
        a, b = np.quantile(error, [0.1, 0.9])
        low, high = np.maximum(0.0, value + a), np.maximum(0.0, value + b)
    horizon = {f["horizon_s"] for _, f in made}
    middle = ends - widths / 2 if len(ends) else ends
    return Forecasts(middle, value, middle[whole] if len(ends) else middle, error, low, high, horizon.pop() if len(horizon) == 1 else None,
                     float(widths[0]) if len(widths) else None)


@dataclass(frozen=True, slots=True)
class PoolSeries:
    """Counts of one pool at the ticks; NaN: unknown."""

    at: np.ndarray
    ready: np.ndarray
    starting: np.ndarray
    planned: np.ndarray

    def changes(self) -> PoolSeries:
        """Only where a count changed, the first and the last: the same steps with few points."""
        keep = steps_kept(self.ready, self.starting, self.planned)
        return PoolSeries(self.at[keep], self.ready[keep], self.starting[keep], self.planned[keep])


def steps_kept(*columns: np.ndarray) -> np.ndarray:
    """Which points of step lines on the same times to keep; unknown after unknown is no change."""
    keep = np.zeros(len(columns[0]), dtype=bool)
    keep[:1] = keep[-1:] = True
    for y in columns:
        keep[1:] |= ~((y[1:] == y[:-1]) | (np.isnan(y[1:]) & np.isnan(y[:-1])))
    return keep


@dataclass(frozen=True, slots=True)
class PlannerSeries:
    """pools by the planner's name; able_rps: what the ready replicas of the pool that can do least serve within the SLO."""

    pools: Mapping[str, PoolSeries]
    able_rps: Series | None


def pool_series(log: PlannerLog, run: Run | None = None) -> PlannerSeries:
    """From the ticks; the last count stands until the end of the run."""
    end_s = run.tables.end_s if run is not None else None
    pools = {pool: _one(log, pool, end_s) for pool in log.pools}
    capacity = capacity_of(log, None)
    able = None
    if pools and all(pool in capacity for pool in pools):
        at = next(iter(pools.values())).at
        rps = np.min([seen.ready * capacity[pool] for pool, seen in pools.items()], axis=0)
        keep = steps_kept(rps)
        able = (at[keep], rps[keep])
    return PlannerSeries(pools, able)


def _one(log: PlannerLog, pool: str, end_s: float | None) -> PoolSeries:
    rows = [(t["now"], t["components"].get(pool, {})) for t in log.ticks]
    if end_s is not None and rows and rows[-1][0] < end_s:
        rows.append((end_s, rows[-1][1]))

    def column(name: str) -> np.ndarray:
        return np.array([_number(row.get(name)) for _, row in rows], dtype=float)

    return PoolSeries(np.array([at for at, _ in rows], dtype=float), column("ready"), column("starting"), column("planned"))


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def ideal_fleet(run: Run, log: PlannerLog, pool: str) -> Series | None:
    """(run s, replicas) of a fleet that always has exactly what the demand of each window needs; None if nobody knows a replica's capacity."""
    capacity = capacity_of(log, None).get(pool)
    end_s = run.tables.end_s
    if not capacity or end_s <= 0:
        return None
    width = min(WINDOW_S, nice(end_s / 10))
    edges = np.append(np.arange(0.0, end_s - width / 2, width), end_s)  # a short rest belongs to the last window
    came = np.histogram(run.requests["arrived_s"].dropna().to_numpy(dtype=float), edges)[0]
    need = np.array(perfect_fleet((came / np.diff(edges)).tolist(), capacity), dtype=float)
    return edges, np.append(need, need[-1:])
