"""What a fleet that scales at once would have cost: the floor beside every run that scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from windtunnel.errors import WindtunnelError
from windtunnel.lab.capacity import perfect_gpu_hours
from windtunnel.policy.planning.settings import ROLES

if TYPE_CHECKING:
    from windtunnel.lab.run import Run

WINDOW_S = 60.0  # the perfect fleet follows the demand minute by minute


def perfect_hours(run: Run) -> float | None:
    """GPU-hours of the perfect fleet for this run's arrivals; None unless a planner ran and the capacity of a replica is known: as the
    control's spec says, else as the planner measured it (record level decisions)."""
    planner = (run.meta.control_spec or {}).get("planner")
    end_s = run.tables.end_s
    if not planner or not end_s:
        return None
    told = _told(planner)
    if told is None:
        return _measured(run)
    arrived = run.tables.arrow("requests").column("arrived_s").to_numpy(zero_copy_only=False)
    replicas = run.tables.arrow("replicas").to_pylist()
    hours = 0.0
    for role, rps in told.items():
        gpus = max((r["gpus"] for r in replicas if r["gpus"] is not None and role in ("", r["role"])), default=1)
        hours += perfect_gpu_hours(arrived[arrived <= end_s], rps, gpus_per_replica=gpus, until_s=end_s, window_s=min(WINDOW_S, end_s))
    return hours


def _told(planner: Mapping[str, Any]) -> dict[str, float] | None:
    """Requests/s of a replica by role ("": any) in the spec of the planner; None if it leaves one out."""
    if planner.get("capacity_rps"):
        return {"": float(planner["capacity_rps"])}
    known = {role: pool.get("capacity_rps") for role, pool in (planner.get("pools") or {}).items()}
    roles = ROLES.get(planner.get("mode") or "agg", ())
    return {role: float(known[role]) for role in roles} if roles and all(known.get(role) for role in roles) else None


def _measured(run: Run) -> float | None:
    from windtunnel.lab.planner_score import capacity_of, perfect_of

    if "notes" not in run.tables.names:
        return None
    try:
        log = run.planner
    except WindtunnelError:
        return None
    return perfect_of(run, log, capacity_of(log, None), WINDOW_S)
