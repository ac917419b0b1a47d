"""What a fleet that scales at once would have cost: the floor beside every run that scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from windtunnel.errors import WindtunnelError
from windtunnel.lab.capacity import perfect_gpu_hours

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
    told = _told(planner) or _measured(run)
    if told is None:
        return None
    capacity, least = told
    arrived = run.tables.arrow("requests").column("arrived_s").to_numpy(zero_copy_only=False)
    gpus = [int(g) for g in run.tables.arrow("replicas").column("gpus").to_pylist() if g is not None]
    per_replica = max(gpus, default=1)
    return sum(perfect_gpu_hours(arrived[arrived <= end_s], rps, gpus_per_replica=per_replica, until_s=end_s, window_s=min(WINDOW_S, end_s),
                                 floor=least) for rps in capacity)


def _told(planner: Mapping[str, Any]) -> tuple[list[float], int] | None:
    """(requests/s of a replica by pool, replicas at least) from the spec of the planner."""
    if planner.get("capacity_rps"):
        return [float(planner["capacity_rps"])], 0
    pools = (planner.get("pools") or {}).values()
    known = [float(p["capacity_rps"]) for p in pools if p.get("capacity_rps")]
    return (known, 0) if known and len(known) == len(pools) else None


def _measured(run: Run) -> tuple[list[float], int] | None:
    from windtunnel.lab.planner_score import capacity_of

    if "notes" not in run.tables.names:
        return None
    try:
        found = capacity_of(run.planner, None)
    except WindtunnelError:
        return None
    return (list(found.values()), 0) if found else None
