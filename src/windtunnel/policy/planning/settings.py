"""Settings of a planner: frozen values that mirror the `planner:` block of a scenario; PlannerConfigError names the dotted path.

Seconds, unless a name says `_ms`. Budgets and limits below 0 are off, None is not set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from math import gcd
from typing import Any, Literal

from windtunnel.errors import PlannerConfigError
from windtunnel.policy.planning.predictor_settings import PredictorSettings
from windtunnel.policy.planning.settings_blocks import (
    BudgetSettings,
    LoadSettings,
    PluginDefaults,
    PoolSettings,
    ReconcileSettings,
    ScalerSettings,
    SchedulingSettings,
    SloSettings,
    StabiliseSettings,
    ThroughputSettings,
    check_block,
    refuse,
)

Mode = Literal["agg", "disagg", "prefill", "decode"]
Target = Literal["throughput", "latency", "load", "sla"]
ROLES: Mapping[str, tuple[str, ...]] = {"agg": ("agg",), "disagg": ("prefill", "decode"), "prefill": ("prefill",), "decode": ("decode",)}
DEFAULT_SCALE_S = 5.0


@dataclass(frozen=True, slots=True)
class PlannerSettings:
    """All of a planner but its plugins. disabled: ids of built-in plugins that are left out; other_proposers: plugins will be added
    that propose, so that the planner has something to do without its own loops."""

    mode: Mode = "agg"
    target: Target = "throughput"
    slo: SloSettings = field(default_factory=SloSettings)
    pools: Mapping[str, PoolSettings] = field(default_factory=dict)
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    advisory: bool = False
    throughput: ThroughputSettings = field(default_factory=ThroughputSettings)
    load: LoadSettings = field(default_factory=LoadSettings)
    predictor: PredictorSettings = field(default_factory=PredictorSettings)
    speculative_nextn: int = 0
    stabilise: StabiliseSettings = field(default_factory=StabiliseSettings)
    reconcile: ReconcileSettings = field(default_factory=ReconcileSettings)
    scheduling: SchedulingSettings = field(default_factory=SchedulingSettings)
    defaults: PluginDefaults = field(default_factory=PluginDefaults)
    scaler: ScalerSettings = field(default_factory=ScalerSettings)
    disabled: frozenset[str] = frozenset()
    other_proposers: bool = False

    def __post_init__(self) -> None:
        check_block("planner", self, natural=("speculative_nextn",))
        self._check_pools()
        self._check_loops()
        self._check_budget()

    @property
    def roles(self) -> tuple[str, ...]:
        """That this planner sizes."""
        return ROLES[self.mode]

    def component(self, role: str) -> str:
        """Name of the role's pool."""
        return self.pools[role].component or role

    @property
    def throughput_on(self) -> bool:
        return self.target == "sla" if self.throughput.enabled is None else self.throughput.enabled

    @property
    def load_on(self) -> bool:
        return self.target != "sla" if self.load.enabled is None else self.load.enabled

    @property
    def scale_interval_s(self) -> float:
        """Of the grid of ticks."""
        asked = self.scheduling.scale_interval_s
        if asked is not None:
            return asked
        in_ms = [round(s * 1000) for s in self._intervals().values()]
        return gcd(*in_ms) / 1000 if in_ms else DEFAULT_SCALE_S

    def as_plain(self) -> dict[str, Any]:
        """As plain data, defaults filled in, for the record. There are no secrets and no endpoints in it."""
        resolved = {"scale_interval_s": self.scale_interval_s, "throughput_on": self.throughput_on, "load_on": self.load_on,
                    "roles": {role: self.component(role) for role in self.roles}}
        return {**asdict(self), "disabled": sorted(self.disabled), "resolved": resolved}

    def hold_max_age_s(self, interval_s: float) -> float:
        """How long an answer of a plugin with that interval may stand in for it."""
        return max(3 * interval_s, 10 * self.scale_interval_s)

    def _intervals(self) -> dict[str, float]:
        on = {"throughput": self.throughput_on, "load": self.load_on}
        return {name: getattr(self, name).interval_s for name, used in on.items() if used}

    def _check_pools(self) -> None:
        for role in self.roles:
            if role not in self.pools:
                raise refuse(f"planner.pools.{role}", f"missing, mode {self.mode} needs it")
        for role in self.pools:
            if role not in ("agg", "prefill", "decode"):
                raise refuse(f"planner.pools.{role}", "unknown role; expected agg, prefill or decode")
            if (role == "agg") != (self.mode == "agg"):  # of prefill and decode one alone may be sized, and the other shown
                raise refuse(f"planner.pools.{role}", f"mode {self.mode} has no role {role}; it would be read by nobody")
        names = [self.component(role) for role in self.roles]
        if len(set(names)) != len(names):
            raise refuse("planner.pools", f"two pools are named {names[0]!r}")

    def _check_loops(self) -> None:
        if not (self.throughput_on or self.load_on or self.other_proposers):
            raise PlannerConfigError("planner_does_nothing: throughput and load are off and no other plugin proposes")
        if self.throughput_on and self.load_on and self.load.interval_s >= self.throughput.interval_s:
            raise refuse("planner.load.interval_s", f"expected less than throughput.interval_s {self.throughput.interval_s:g}")
        scale = self.scale_interval_s
        if scale <= 0:
            raise refuse("planner.scheduling.scale_interval_s", "intervals are whole milliseconds")
        for name, interval_s in self._intervals().items():
            ratio = interval_s / scale
            if abs(ratio - round(ratio)) > 1e-6 or round(ratio) < 1:
                raise refuse("planner.scheduling.scale_interval_s", f"{scale:g} does not divide {name}.interval_s {interval_s:g}")
        if self.defaults.timeout_s > self.scheduling.tick_max_duration_s:
            raise refuse("planner.plugins.defaults.timeout_s", "expected at most scheduling.tick_max_duration_s")
        if self.load_on and self.target == "load":
            sides = {"prefill": ("prefill_up_tokens", "prefill_down_tokens")}
            for name in (n for role in self.roles for n in sides.get(role, ("decode_up", "decode_down"))):
                if getattr(self.load, name) is None:
                    raise refuse(f"planner.load.{name}", "missing, target load needs it")

    def _check_budget(self) -> None:
        most = self.budget.max_gpus
        pools = {role: self.pools[role] for role in self.roles}
        least = sum(p.min_replicas * p.gpus for p in pools.values())
        if 0 <= most < least:
            raise refuse("planner.budget.max_gpus", f"{most} GPUs, but min_replicas need {least}")
        if self.budget.power_w is not None:
            for role, pool in pools.items():
                if pool.watts_per_replica is None:
                    raise refuse(f"planner.pools.{role}.watts_per_replica", "missing, budget.power_w needs it")


RUNTIME = ("slo", "budget", "predictor", "stabilise")  # may change while a planner runs, and every pool's min_replicas


def check_reconfigurable(old: PlannerSettings, new: PlannerSettings) -> None:
    """May a running planner go from `old` to `new`? Raises PlannerConfigError naming the first thing that needs a new planner."""
    for f in fields(PlannerSettings):
        if f.name not in (*RUNTIME, "pools") and getattr(old, f.name) != getattr(new, f.name):
            raise refuse(f"planner.{f.name}", "cannot change while the planner runs; make a new planner")
    for role in sorted({*old.pools, *new.pools}):
        before, after = old.pools.get(role), new.pools.get(role)
        if before is None or after is None or replace(before, min_replicas=0, max_replicas=None) != replace(after, min_replicas=0, max_replicas=None):
            raise refuse(f"planner.pools.{role}", "only min_replicas can change while the planner runs; make a new planner")
        if before.max_replicas != after.max_replicas:
            raise refuse(f"planner.pools.{role}.max_replicas", "cannot change while the planner runs; make a new planner")
