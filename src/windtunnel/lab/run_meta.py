"""What a run says about itself, beside its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(slots=True)
class RunMeta:
    """What a run says about itself, beside its tables.

    planned_s: duration if one was set; loop: of the source; slo: column → bound in s (or per priority class); control_spec: resolved
    `control` section; started_at: UTC, ISO; warmup_s and cooldown_s mark requests at both ends; concurrency: of a closed loop by counts;
    plugin_failures: of the planner, id → (calls that failed, calls); missed_faults: those that did not happen as written, see `MissedFaults`.
    """

    name: str
    world: Literal["simulated", "live"] = "simulated"
    mode: str = "simulated"
    seed: int = 0
    replication: int = 0
    complete: bool = False
    degraded: bool = False
    provenance: str = ""
    planned_s: float | None = None
    loop: str = "open"
    wall_s: float = 0.0
    cpu_s: float = 0.0
    slo: Mapping[str, Any] = field(default_factory=dict)
    record: str = "requests"
    control_spec: Mapping[str, Any] | None = None
    scenario_digest: str = ""
    started_at: str = ""
    warmup_s: float | Literal["mser5"] = 0.0
    cooldown_s: float = 0.0
    concurrency: float | None = None
    question: str = ""
    command: str = ""
    plugin_failures: Mapping[str, Sequence[int]] = field(default_factory=dict)
    missed_faults: Sequence[Mapping[str, Any]] = field(default_factory=list)

    @property
    def run_id(self) -> str:
        """`<name>-<digest[:8]>-s<seed>r<replication>`; live runs add their start."""
        parts = [self.name, self.scenario_digest[:8], f"s{self.seed}r{self.replication}"]
        if self.world == "live" and self.started_at:
            digits = "".join(c for c in self.started_at[:19] if c.isdigit())
            parts.append(f"{digits[:8]}T{digits[8:]}Z")
        return "-".join(p for p in parts if p)
