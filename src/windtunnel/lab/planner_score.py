"""How good a planner was: GPU-hours over a perfect fleet, and how often it turned back. Runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

import pandas as pd

from windtunnel.errors import ConfigError, RunNotRecordedError
from windtunnel.lab.capacity import perfect_gpu_hours
from windtunnel.lab.planner_log import PlannerLog
from windtunnel.lab.planner_why import moved

if TYPE_CHECKING:
    from windtunnel.lab.run import Run

REVERSAL_S = 600.0
WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class PlannerScore:
    """None: not known. regret_gpu_hours: over the perfect fleet, regret_share: as a share of its GPU-hours; flaps: turns of direction
    within 10 min of the move before; wape: of the demand forecasts; capacity_rps: of one replica, by pool, that the perfect fleet has."""

    good_fraction: float | None
    goodput_rps: float | None
    gpu_hours: float | None
    perfect_gpu_hours: float | None
    regret_gpu_hours: float | None
    regret_share: float | None
    flaps: int | None
    ups: int | None
    downs: int | None
    wape: float | None
    capacity_rps: Mapping[str, float]


def planner_score(run: Run, capacity_rps: Mapping[str, float] | float | None = None, *, window_s: float = WINDOW_S) -> PlannerScore:
    """Of a run, with or without a planner. capacity_rps: requests/s of one replica within the SLO (by pool if there are several), None:
    what the planner was given or measured. window_s: over which the perfect fleet follows the demand."""
    values = run.summary().values
    log = log_or_none(run)
    capacity = capacity_of(log, capacity_rps)
    perfect = perfect_of(run, log, capacity, window_s)
    hours = values["gpu_hours"]
    regret = None if hours is None or perfect is None else hours - perfect
    moves = moves_of(log) if log is not None else None
    ups = None if moves is None else sum(1 for found in moves.values() for _, step in found if step > 0)
    share = regret / perfect if regret is not None and perfect else None
    flaps = _reversals(moves) if moves is not None else values["scale_reversals"]
    downs = None if moves is None or ups is None else sum(map(len, moves.values())) - ups
    return PlannerScore(values["good_fraction"], values["goodput_rps"], hours, perfect, regret, share, flaps, ups, downs, _wape(log), capacity)


def planner_table(runs: Mapping[str, Run] | Sequence[Run], capacity_rps: Mapping[str, float] | float | None = None, *,
                  window_s: float = WINDOW_S) -> pd.DataFrame:
    """Runs side by side, one row each: goodput, GPU-hours, regret, flaps, moves, forecast error.

    The regret of all is counted from the same perfect fleet, so that it can be compared: of capacity_rps, else of the first run that
    knows what a replica can do.
    """
    named = dict(runs) if isinstance(runs, Mapping) else {run.meta.name if len(runs) == 1 else f"{i}: {run.meta.name}": run
                                                          for i, run in enumerate(runs, 1)}
    known = capacity_rps if capacity_rps is not None else next((c for run in named.values() if (c := capacity_of(log_or_none(run), None))), None)
    rows = {name: asdict(planner_score(run, _alike(known), window_s=window_s)) for name, run in named.items()}
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame.from_dict(rows, orient="index").drop(columns="capacity_rps").rename_axis("run")
    return table.astype(dict.fromkeys(("flaps", "ups", "downs"), "Int64") | dict.fromkeys(("regret_share", "wape"), "float"))


def _alike(known: Mapping[str, float] | float | None) -> Mapping[str, float] | float | None:
    """One number stands for whatever the other run calls its only pool."""
    return next(iter(known.values())) if isinstance(known, Mapping) and len(known) == 1 else known


def log_or_none(run: Run) -> PlannerLog | None:
    """The planner's log, None if none ran or the record level does not keep it."""
    try:
        return run.planner
    except (RunNotRecordedError, ConfigError):
        return None


def capacity_of(log: PlannerLog | None, given: Mapping[str, float] | float | None) -> dict[str, float]:
    """Requests/s of one replica by pool: given, else set, else the median of what the planner measured. Pools that nobody knows are absent."""
    if isinstance(given, Mapping):
        return dict(given)
    pools = log.pools if log is not None else ()
    if given is not None:
        return dict.fromkeys(pools or ("",), float(given))
    if log is None:
        return {}
    found: dict[str, list[float]] = {}
    names = component_names(log)
    for tick in log.ticks:
        for role, can in tick["capacity"].items():
            if can.get("rps"):
                found.setdefault(names.get(role, role), []).append(can["rps"])
    return {pool: median(values) for pool, values in found.items()}


def component_names(log: PlannerLog) -> dict[str, str]:
    """Role → the planner's name of its pool."""
    return dict((log.settings.get("resolved") or {}).get("roles") or {})


def perfect_of(run: Run, log: PlannerLog | None, capacity: Mapping[str, float], window_s: float) -> float | None:
    """GPU-hours of the perfect fleet; None if the capacity of a pool is not known."""
    pools = log.pools if log is not None else ("",)
    if not capacity or any(pool not in capacity for pool in pools):
        return None
    arrived = run.requests["arrived_s"].dropna().to_numpy(dtype=float)
    end_s = run.tables.end_s
    gpus = gpus_of(log) if log is not None else {}
    return sum(perfect_gpu_hours(arrived[arrived <= end_s], capacity[pool], gpus_per_replica=gpus.get(pool, _gpus(run)), until_s=end_s,
                                 window_s=min(window_s, max(end_s, 1e-9))) for pool in pools)


def _gpus(run: Run) -> int:
    """Of one replica, if the run's replicas are alike."""
    found = run.replicas["gpus"].dropna()
    return int(found.iloc[0]) if len(found) else 1


def gpus_of(log: PlannerLog) -> dict[str, int]:
    """GPUs of one replica by pool, where the settings tell."""
    names = component_names(log)
    return {names.get(role, role): int(pool["gpus"]) for role, pool in (log.settings.get("pools") or {}).items()}


def moves_of(log: PlannerLog) -> dict[str, list[tuple[float, int]]]:
    """(run s, replicas more or fewer) of every move that was ordered, by pool."""
    out: dict[str, list[tuple[float, int]]] = {pool: [] for pool in log.pools}
    for tick in log.ticks:
        for pool, row in tick["components"].items():
            if moved(row) and row["baseline"] is not None and "advisory" not in row["plan_reasons"]:
                out[pool].append((tick["now"], row["planned"] - row["baseline"]))
    return out


def _reversals(moves: Mapping[str, Sequence[tuple[float, int]]]) -> int:
    return sum((a[1] > 0) != (b[1] > 0) and b[0] - a[0] <= REVERSAL_S for found in moves.values() for a, b in pairwise(found))


def _wape(log: PlannerLog | None) -> float | None:
    """Of the demand forecasts, over the whole run as far as the planner remembers them."""
    scores = [(t["forecast"].get("errors") or {}).get("num_req") for t in (log.ticks if log is not None else ())]
    return next((s["wape"] for s in reversed(scores) if s), None)
