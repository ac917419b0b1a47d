"""Settings of a planner: frozen values that mirror the `planner:` block of a scenario; PlannerConfigError names the dotted path.

Seconds, unless a name says `_ms`. Budgets and limits below 0 are off, None is not set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import gcd, isfinite, isqrt
from typing import Any, ClassVar, Literal

from windtunnel.errors import PlannerConfigError
from windtunnel.policy.planning.capacity import EngineLimits, Slo

Mode = Literal["agg", "disagg", "prefill", "decode"]
Target = Literal["throughput", "latency", "load", "sla"]
ROLES: Mapping[str, tuple[str, ...]] = {"agg": ("agg",), "disagg": ("prefill", "decode"), "prefill": ("prefill",), "decode": ("decode",)}
STRICT: dict[str, Any] = {"extra": "forbid", "allow_inf_nan": False}  # read by pydantic's TypeAdapter at the edge
DEFAULT_SCALE_S = 5.0


def refuse(path: str, why: str) -> PlannerConfigError:
    return PlannerConfigError(f"{path}: {why}")


def _check(block: str, values: Any, *, positive: tuple[str, ...] = (), natural: tuple[str, ...] = ()) -> None:
    """Every number of a block is finite; `positive` ones > 0, `natural` ones >= 0; None passes."""
    for f in fields(values):
        value = getattr(values, f.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        path = f"{block}.{f.name}"
        if not isfinite(value):
            raise refuse(path, f"expected a finite number, got {value!r}")
        if f.name in positive and value <= 0:
            raise refuse(path, f"expected a number > 0, got {value!r}")
        if f.name in natural and value < 0:
            raise refuse(path, f"expected a number >= 0, got {value!r}")


@dataclass(frozen=True, slots=True)
class SloSettings:
    """Bounds in ms; None: no bound."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    ttft_ms: float | None = 500.0
    itl_ms: float | None = 50.0

    def __post_init__(self) -> None:
        _check("planner.slo", self, positive=("ttft_ms", "itl_ms"))

    @property
    def bounds(self) -> Slo:
        return Slo(None if self.ttft_ms is None else self.ttft_ms / 1000, None if self.itl_ms is None else self.itl_ms / 1000)


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """Of one engine; None: learned from its reports where that is possible, else unknown."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    max_kv_tokens: int | None = None
    context_length: int | None = None

    def __post_init__(self) -> None:
        _check("planner.pools.limits", self, positive=("max_num_batched_tokens", "max_num_seqs", "max_kv_tokens", "context_length"))

    @property
    def limits(self) -> EngineLimits:
        return EngineLimits(self.max_num_batched_tokens, self.max_num_seqs, self.max_kv_tokens, self.context_length)


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """One role's pool. component: its name, by default the role's; gpus, watts: per replica; boot_s: until one was measured."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    component: str | None = None
    gpus: int = 1
    min_replicas: int = 1
    max_replicas: int | None = None
    watts_per_replica: float | None = None
    boot_s: float = 60.0
    limits: LimitSettings = LimitSettings()

    def __post_init__(self) -> None:
        _check("planner.pools", self, positive=("watts_per_replica",), natural=("gpus", "min_replicas", "max_replicas", "boot_s"))
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise refuse("planner.pools.max_replicas", f"expected at least min_replicas {self.min_replicas}, got {self.max_replicas}")


@dataclass(frozen=True, slots=True)
class BudgetSettings:
    """GPUs of all pools together, below 0: off. power_w None: off."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    max_gpus: int = -1
    min_gpus: int = -1
    power_w: float | None = None

    def __post_init__(self) -> None:
        _check("planner.budget", self, positive=("power_w",))
        if 0 <= self.max_gpus < self.min_gpus:
            raise refuse("planner.budget.min_gpus", f"expected at most max_gpus {self.max_gpus}, got {self.min_gpus}")


@dataclass(frozen=True, slots=True)
class ThroughputSettings:
    """Feed-forward from predicted traffic. drain_s None: max(60, twice the boot time)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    enabled: bool | None = None
    interval_s: float = 180.0
    target_utilisation: float = 0.8
    max_step: int = 8
    floor_at_observed: bool = True
    drain_s: float | None = None

    def __post_init__(self) -> None:
        _check("planner.throughput", self, positive=("interval_s", "target_utilisation", "max_step", "drain_s"))
        if self.target_utilisation > 1:
            raise refuse("planner.throughput.target_utilisation", f"expected a share in (0, 1], got {self.target_utilisation!r}")


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """One step at a time from engine reports. The four thresholds belong to target `load`: tokens of a replica's queue, share of its KV."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    enabled: bool | None = None
    interval_s: float = 5.0
    scale_down_sensitivity: float = 80.0
    min_observations: int = 5
    max_samples: int = 64
    cells: int = 16
    prefill_up_tokens: float | None = None
    prefill_down_tokens: float | None = None
    decode_up: float | None = None
    decode_down: float | None = None

    def __post_init__(self) -> None:
        thresholds = ("prefill_up_tokens", "prefill_down_tokens", "decode_up", "decode_down")
        _check("planner.load", self, positive=("interval_s", "max_samples", "cells"), natural=("min_observations", *thresholds))
        if not 0 <= self.scale_down_sensitivity <= 100:
            raise refuse("planner.load.scale_down_sensitivity", f"expected 0 to 100, got {self.scale_down_sensitivity!r}")
        if isqrt(self.cells) ** 2 != self.cells:
            raise refuse("planner.load.cells", f"expected a square number, got {self.cells!r}")
        for up, down in (("prefill_up_tokens", "prefill_down_tokens"), ("decode_up", "decode_down")):
            high, low = getattr(self, up), getattr(self, down)
            if high is not None and low is not None and low >= high:
                raise refuse(f"planner.load.{down}", f"expected less than {up} {high:g}, got {low:g}")


@dataclass(frozen=True, slots=True)
class KalmanSettings:
    """Variances per step, and the values needed before the trend is used."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    q_level: float = 1.0
    q_trend: float = 0.1
    r: float = 10.0
    min_points: int = 5

    def __post_init__(self) -> None:
        _check("planner.predictor.kalman", self, positive=("r", "min_points"), natural=("q_level", "q_trend"))


@dataclass(frozen=True, slots=True)
class HoltWintersSettings:
    """Weights of the newest value; season_len: steps of a season, None: no season."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    alpha: float = 0.5
    beta: float = 0.1
    gamma: float = 0.1
    season_len: int | None = None

    def __post_init__(self) -> None:
        _check("planner.predictor.holt_winters", self, natural=("alpha", "beta", "gamma"), positive=("season_len",))
        for name in ("alpha", "beta", "gamma"):
            if getattr(self, name) > 1:
                raise refuse(f"planner.predictor.holt_winters.{name}", f"expected a weight in [0, 1], got {getattr(self, name)!r}")


@dataclass(frozen=True, slots=True)
class ProphetSettings:
    """window: values that a fit sees."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    window: int = 50

    def __post_init__(self) -> None:
        _check("planner.predictor.prophet", self, positive=("window",))


@dataclass(frozen=True, slots=True)
class PredictorSettings:
    """horizon: "provisioning", "next", or seconds; quantile None: plan for the mean."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    model: Literal["constant", "moving_mean", "kalman", "holt_winters", "arima", "prophet"] = "kalman"
    log1p: bool = False
    horizon: float | Literal["provisioning", "next"] = "provisioning"
    quantile: float | None = None
    kalman: KalmanSettings = KalmanSettings()
    holt_winters: HoltWintersSettings = HoltWintersSettings()
    prophet: ProphetSettings = ProphetSettings()

    def __post_init__(self) -> None:
        _check("planner.predictor", self, positive=("horizon",))
        if self.quantile is not None and not 0 < self.quantile < 1:
            raise refuse("planner.predictor.quantile", f"expected a share strictly between 0 and 1, got {self.quantile!r}")


@dataclass(frozen=True, slots=True)
class StabiliseSettings:
    """Rules that keep pools from flapping; a time of 0 switches its rule off."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    enabled: bool = True
    period_s: float = 15.0
    up_replicas: int = 4
    up_factor: float = 2.0
    down_replicas: int = 4
    down_factor: float = 2.0
    up_cooldown_s: float = 0.0
    down_cooldown_s: float = 60.0
    down_after_up_s: float = 120.0
    down_window_s: float = 300.0
    up_window_s: float = 0.0
    up_tolerance: float = 0.0
    down_tolerance: float = 0.1
    panic_factor: float = 2.0
    panic_window_s: float = 60.0

    def __post_init__(self) -> None:
        _check("planner.stabilise", self, natural=tuple(f.name for f in fields(self)))
        for name in ("up_factor", "down_factor", "panic_factor"):
            if getattr(self, name) < 1:
                raise refuse(f"planner.stabilise.{name}", f"expected a factor >= 1, got {getattr(self, name)!r}")


@dataclass(frozen=True, slots=True)
class ReconcileSettings:
    """Keeps prefill and decode in proportion to what each can do."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    enabled: bool = False
    pd_ratio_tolerance: float = 0.25

    def __post_init__(self) -> None:
        _check("planner.reconcile", self, natural=("pd_ratio_tolerance",))
        if self.pd_ratio_tolerance >= 1:
            raise refuse("planner.reconcile.pd_ratio_tolerance", f"expected a share below 1, got {self.pd_ratio_tolerance!r}")


@dataclass(frozen=True, slots=True)
class SchedulingSettings:
    """Grid and windows. scale_interval_s None: the gcd of the intervals in use; fpm_max_age_s None: three of them."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    scale_interval_s: float | None = None
    tick_max_duration_s: float = 30.0
    tie_break: Literal["registration", "plugin_id"] = "registration"
    min_coverage: float = 0.5
    fpm_max_age_s: float | None = None

    def __post_init__(self) -> None:
        _check("planner.scheduling", self, positive=("scale_interval_s", "tick_max_duration_s", "fpm_max_age_s"), natural=("min_coverage",))
        if self.min_coverage > 1:
            raise refuse("planner.scheduling.min_coverage", f"expected a share in [0, 1], got {self.min_coverage!r}")


@dataclass(frozen=True, slots=True)
class PluginDefaults:
    """What a plugin takes that does not say otherwise."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    timeout_s: float = 5.0
    failure_threshold: int = 5
    cooldown_s: float = 30.0

    def __post_init__(self) -> None:
        _check("planner.plugins.defaults", self, positive=("timeout_s", "failure_threshold", "cooldown_s"))


@dataclass(frozen=True, slots=True)
class ScalerSettings:
    """The connector and its waits. scale_up_timeout_s None: max(600, three boot times)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    kind: Literal["none", "virtual", "exec", "kubernetes"] = "none"
    drain_timeout_s: float = 120.0
    scale_up_timeout_s: float | None = None
    stuck_retry_s: float = 300.0
    scale_to_zero_idle_s: float = 300.0

    def __post_init__(self) -> None:
        _check("planner.scaler", self, natural=("drain_timeout_s", "stuck_retry_s", "scale_to_zero_idle_s"), positive=("scale_up_timeout_s",))


@dataclass(frozen=True, slots=True)
class PlannerSettings:
    """All of a planner but its plugins. disabled: ids of built-in plugins that are left out; other_proposers: plugins will be added
    that propose, so that the planner has something to do without its own loops."""

    mode: Mode = "agg"
    target: Target = "throughput"
    slo: SloSettings = SloSettings()
    pools: Mapping[str, PoolSettings] = field(default_factory=dict)
    budget: BudgetSettings = BudgetSettings()
    advisory: bool = False
    throughput: ThroughputSettings = ThroughputSettings()
    load: LoadSettings = LoadSettings()
    predictor: PredictorSettings = PredictorSettings()
    speculative_nextn: int = 0
    stabilise: StabiliseSettings = StabiliseSettings()
    reconcile: ReconcileSettings = ReconcileSettings()
    scheduling: SchedulingSettings = SchedulingSettings()
    defaults: PluginDefaults = PluginDefaults()
    scaler: ScalerSettings = ScalerSettings()
    disabled: frozenset[str] = frozenset()
    other_proposers: bool = False

    def __post_init__(self) -> None:
        _check("planner", self, natural=("speculative_nextn",))
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
