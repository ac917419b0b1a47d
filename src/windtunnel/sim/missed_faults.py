"""Faults that could not be carried out: whom they did not find, and those whose time never came. Else a scenario looks tougher than it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from windtunnel.sim.fault_config import Fault
    from windtunnel.sim.lifecycle import SimReplica


class MissedFaults:
    """The books of one run's faults. until: nothing begins at or after it."""

    def __init__(self, faults: Sequence[Fault], until: float | None) -> None:
        self._faults, self._until = faults, until
        self._came = [0] * len(faults)
        self._rows: dict[int, dict[str, Any]] = {}

    def came(self, n: int) -> None:
        """The time of fault n has come."""
        self._came[n] += 1

    def found(self, n: int, at_s: float, targets: Sequence[SimReplica]) -> bool:
        """Fault n looked for its replicas and found these; False: fewer than it names."""
        fault, ordinals = self._faults[n], {r.ordinal for r in targets}
        absent = sorted(set(fault.replicas) - ordinals)
        asked = len(ordinals) + len(absent) if fault.replicas else fault.count or (1 if fault.fraction != 0.0 else 0)
        if not absent and len(targets) >= asked:
            return True
        row = self._rows.setdefault(n, self._row(n, at_s) | {"replicas": absent, "found": len(targets), "asked": asked})
        row["times"] += 1
        return False

    def rows(self, end_s: float) -> list[dict[str, Any]]:
        """Plain data of each fault that missed: fault (its place in the list), kind, pool, at_s (the first time), times, of (how often it came;
        0: never, for the run was over at over_s), replicas (ordinals that were not ready), found and asked (how many replicas)."""
        never = {n: self._row(n, float(f.at_s or 0.0)) | {"over_s": end_s if self._until is None else min(self._until, end_s)}
                 for n, f in enumerate(self._faults) if not self._came[n] and f.rate_per_h is None}
        return [row | {"of": self._came[n]} for n, row in sorted((self._rows | never).items())]

    def _row(self, n: int, at_s: float) -> dict[str, Any]:
        fault = self._faults[n]
        return {"fault": n, "kind": fault.kind, "pool": fault.pool, "at_s": at_s, "times": 0}
