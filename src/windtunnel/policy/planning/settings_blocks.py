"""The blocks of a planner's settings: frozen values; PlannerConfigError names the dotted path of a bad one.

Seconds, unless a name says `_ms`. Budgets and limits below 0 are off, None is not set.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from math import isfinite, isqrt
from typing import Any, ClassVar, Literal

from windtunnel.errors import PlannerConfigError
from windtunnel.policy.planning.capacity import EngineLimits, Slo
from windtunnel.policy.planning.checks import STRICT


def refuse(path: str, why: str) -> PlannerConfigError:
    """The error for the setting at a dotted path."""
    return PlannerConfigError(f"{path}: {why}")


def check_block(block: str, values: Any, *, positive: tuple[str, ...] = (), natural: tuple[str, ...] = ()) -> None:
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
        check_block("planner.slo", self, positive=("ttft_ms", "itl_ms"))

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
        check_block("planner.pools.limits", self, positive=("max_num_batched_tokens", "max_num_seqs", "max_kv_tokens", "context_length"))

    @property
    def limits(self) -> EngineLimits:
        return EngineLimits(self.max_num_batched_tokens, self.max_num_seqs, self.max_kv_tokens, self.context_length)


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """One role's pool. component: its name, by default the role's; gpus, watts: per replica; boot_s: until one was measured;
    capacity_rps: requests/s of one replica within the SLO, None: found with step times."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    component: str | None = None
    gpus: int = 1
    min_replicas: int = 1
    max_replicas: int | None = None
    watts_per_replica: float | None = None
    boot_s: float = 60.0
    capacity_rps: float | None = None
    limits: LimitSettings = field(default_factory=LimitSettings)

    def __post_init__(self) -> None:
        check_block("planner.pools", self, positive=("watts_per_replica", "capacity_rps"), natural=("gpus", "min_replicas", "max_replicas", "boot_s"))
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
        check_block("planner.budget", self, positive=("power_w",))
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
        check_block("planner.throughput", self, positive=("interval_s", "target_utilisation", "max_step", "drain_s"))
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
        check_block("planner.load", self, positive=("interval_s", "max_samples", "cells"), natural=("min_observations", *thresholds))
        if not 0 <= self.scale_down_sensitivity <= 100:
            raise refuse("planner.load.scale_down_sensitivity", f"expected 0 to 100, got {self.scale_down_sensitivity!r}")
        if isqrt(self.cells) ** 2 != self.cells:
            raise refuse("planner.load.cells", f"expected a square number, got {self.cells!r}")
        for up, down in (("prefill_up_tokens", "prefill_down_tokens"), ("decode_up", "decode_down")):
            high, low = getattr(self, up), getattr(self, down)
            if high is not None and low is not None and low >= high:
                raise refuse(f"planner.load.{down}", f"expected less than {up} {high:g}, got {low:g}")


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
        check_block("planner.stabilise", self, natural=tuple(f.name for f in fields(self)))
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
        check_block("planner.reconcile", self, natural=("pd_ratio_tolerance",))
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
        check_block("planner.scheduling", self, positive=("scale_interval_s", "tick_max_duration_s", "fpm_max_age_s"), natural=("min_coverage",))
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
        check_block("planner.plugins.defaults", self, positive=("timeout_s", "failure_threshold", "cooldown_s"))


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
        check_block("planner.scaler", self, natural=("drain_timeout_s", "stuck_retry_s", "scale_to_zero_idle_s"), positive=("scale_up_timeout_s",))
